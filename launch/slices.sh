# shellcheck shell=bash
# Sourced by the launch scripts of TPUs: which slice a config takes, and what the cloud calls it.

# slice_of WORDS...: the smallest slice that holds the config of a command line, by `ugc-jax plan`
# (docs/pods.md); nothing if no config that is known here is named.
slice_of() {
    local word config="" next=""
    for word in "$@"; do
        if [ -n "$next" ]; then config=$word next=""; fi
        case $word in
        --config) next=1 ;;
        --config=*) config=${word#*=} ;;
        esac
    done
    case $config in
    sft_3b:lora | sft_7b:lora) echo v5e:2x4 ;;
    sft_3b | sft_3b_20k | sft_7b | grpo_3b | grpo_3b:lora | grpo_7b:lora | grpo_7b) echo v5e:4x4 ;;
    esac
}

# chosen SLICE WORDS...: that slice; of `auto`, the one of the config, and status 2 without any.
chosen() {
    local slice=$1
    if [ "$slice" = auto ]; then slice=$(slice_of "${@:2}"); fi
    if [ -z "$slice" ]; then
        echo "auto: no slice is known for this config; name one, as v5e:4x4" >&2
        return 2
    fi
    echo "$slice"
}

# chips_of SLICE: the number of chips of v5e:4x4.
chips_of() {
    local sizes
    sizes=${1#*:}
    echo $((${sizes//x/*}))
}

# type_of SLICE: the accelerator type of v5e:4x4, v5litepod-16.
type_of() {
    local chips
    chips=$(chips_of "$1")
    case $1 in
    v5e:*) echo "v5litepod-$chips" ;;
    v6e:*) echo "v6e-$chips" ;;
    v5p:*) echo "v5p-$((2 * chips))" ;; # these two are named by cores
    v4:*) echo "v4-$((2 * chips))" ;;
    *)
        echo "$1: no slice; write v5e:4x4, v6e:4x4, v5p:2x2x2 or v4:2x2x2" >&2
        return 2
        ;;
    esac
}

# runtime_of SLICE: the software version of its TPU VMs.
runtime_of() {
    case $1 in
    v5e:*) echo v2-alpha-tpuv5-lite ;;
    v6e:*) echo v2-alpha-tpuv6e ;;
    v5p:*) echo v2-alpha-tpuv5 ;;
    *) echo tpu-ubuntu2204-base ;;
    esac
}
