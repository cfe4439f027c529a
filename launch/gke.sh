#!/usr/bin/env bash
# Run a training job on Google Kubernetes Engine as a JobSet, on a TPU slice or on GPU nodes:
#     bash launch/gke.sh NAME v5e:4x4 IMAGE sft --config sft_7b \
#         --data.train gs://BUCKET/records --output gs://BUCKET/run
#     bash launch/gke.sh NAME nvidia-h100-80gb:8x2 IMAGE sft ...    # 8 GPUs a node, 2 nodes
# The slice may be `auto`: the smallest one that holds the config, for those of configs/ (3B and 7B).
# The cluster is the one of kubectl's context, with JobSet (kubectl get crd jobsets.jobset.x-k8s.io);
# IMAGE is built of launch/Dockerfile. If a process is lost, all end, and JobSet starts all again
# (at most RETRIES times, default 20); the job continues from its last checkpoint. A user's mistake
# (status 2) ends it at once. kubectl delete jobset NAME sends SIGTERM: it saves and stops.
# SPOT=1 takes spot nodes. SERVICE_ACCOUNT=NAME: of Kubernetes, for the bucket.
# --dry-run, before NAME, prints the JobSet, and the same as a line for xpk.
set -euo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=1 && shift; fi
if [ $# -lt 4 ]; then
    echo "usage: bash launch/gke.sh [--dry-run] NAME SLICE|auto IMAGE JOB [--config NAME] [--KEY VALUE ...]" >&2
    exit 2
fi
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=slices.sh
source "$launch/slices.sh"
name=$1 slice=$2 image=$3 job=$4
words=("${@:5}")
slice=$(chosen "$slice" "${words[@]}")

# quoted WORD: as a YAML string.
quoted() {
    printf "'%s'" "${1//\'/\'\'}"
}

# What differs between TPUs and GPUs: hosts, chips (of a host), selector, variables of the container.
variables=""
case $slice in
nvidia-*:*x*)
    sizes=${slice#*:}
    hosts=${sizes#*x} chips=${sizes%x*} resource=nvidia.com/gpu
    selector="cloud.google.com/gke-accelerator: ${slice%:*}"
    variables="
                - name: UGC_JAX_PROCESSES
                  value: '$hosts'
                - name: UGC_JAX_PROCESS
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
                - name: JAX_COORDINATOR_ADDRESS
                  value: $name-hosts-0-0.$name:8476"
    kind=""
    ;;
*)
    kind=$(type_of "$slice")
    total=$(chips_of "$slice") resource=google.com/tpu
    # v5e and v6e have machines with all of up to 8 chips; larger slices are of machines with 4.
    chips=4
    case $slice in v5e:* | v6e:*) if ((total <= 8)); then chips=$total; fi ;; esac
    hosts=$((total / chips))
    case $slice in
    v5e:*) type=tpu-v5-lite-podslice ;;
    v6e:*) type=tpu-v6e-slice ;;
    v5p:*) type=tpu-v5p-slice ;;
    v4:*) type=tpu-v4-podslice ;;
    esac
    selector="cloud.google.com/gke-tpu-accelerator: $type
                cloud.google.com/gke-tpu-topology: ${slice#*:}"
    ;;
esac
if [ -n "${SPOT:-}" ]; then
    selector+="
                cloud.google.com/gke-spot: 'true'"
fi

jobset() {
    cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
${kind:+  annotations:
    # all hosts of a slice
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
}spec:
  failurePolicy:
    maxRestarts: ${RETRIES:-20}
    rules:
      # a user's mistake: no further start mends it
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              # time to save after SIGTERM
              terminationGracePeriodSeconds: 120
              nodeSelector:
                $selector
              tolerations:
                - key: $resource
                  operator: Exists
                  effect: NoSchedule
${SERVICE_ACCOUNT:+              serviceAccountName: $SERVICE_ACCOUNT
}              containers:
                - name: train
                  image: $(quoted "$image")
                  args:
$(for word in "$job" --distributed "${words[@]}"; do echo "                    - $(quoted "$word")"; done)
                  env:
                    - name: PYTHONUNBUFFERED
                      value: '1'${variables//$'\n'/$'\n'    }
                  resources:
                    limits:
                      $resource: $chips
                  volumeMounts:
                    - name: shm
                      mountPath: /dev/shm
              volumes:
                # batches come to the training process by shared memory
                - name: shm
                  emptyDir:
                    medium: Memory
END
}

if [ -n "$dry" ]; then
    jobset
    if [ -n "$kind" ]; then
        echo "# The same with xpk:"
        echo "# xpk workload create --cluster=CLUSTER --workload=$name --tpu-type=$kind --num-slices=1" \
            "--docker-image=$image --max-restarts=${RETRIES:-20} --command=$(
                printf %q "ugc-jax $(printf '%q ' "$job" --distributed "${words[@]}")"
            )"
    fi
    exit 0
fi
jobset | kubectl apply -f -
cat <<END
kubectl get jobset $name                                                  # its state and restarts
kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
kubectl delete jobset $name                                               # saves and stops
END
