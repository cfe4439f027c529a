"""Label clips by a model of Gemini: its name and the prices that were published in 2025.

ugc-jax label clips/ --config label_gemini:gemini-2.5-flash --max_cost 5 --output data/train.jsonl

Check the prices before you rely on them: providers change them, and end models. A model that is not
in the table: --model NAME --price_in P --price_out P.
"""

from ml_collections import ConfigDict

from ugc_jax.settings import check_config_argument

# US dollars per million tokens: of text and picture, of sound, of answers.
PRICES = {
    "gemini-2.5-pro": (1.25, 1.25, 10.0),
    "gemini-2.5-flash": (0.30, 1.00, 2.50),
    "gemini-2.5-flash-lite": (0.10, 0.30, 0.40),
}


def get_config(arg=None) -> ConfigDict:
    check_config_argument(arg, *PRICES)
    config = ConfigDict()
    config.teacher = ConfigDict({"kind": "gemini"})
    if arg is not None:
        picture, sound, answers = PRICES[arg]
        config.teacher.model = arg
        config.teacher.price_in = picture
        config.teacher.price_sound = sound
        config.teacher.price_out = answers
    return config
