"""Training text of `build_tokenizer`: the benchmark's prompts, and captions with common words."""

from ugc_jax.media.presets import QUESTION, UPSTREAM_SYSTEM
from ugc_jax.toy.world import corpus_sentences

PROMPTS = """\
You are a helpful assistant.
system
user
assistant
You are given an video clip with audio track. Write a detailed and coherent paragraph that \
describes the content based solely on the audio. captures the auditory experience in a \
human-like, narrative style.
captures the visual experience in a human-like, narrative style.
Is background music (BGM) present in the video? Please answer with one of the following options. \
Yes No
Does the background change during the video? Describe it in detail.
List all major objects in the video, including their category, count, color, and position. Please \
format your answer as: object (count: X, color: Y, position: Z); ...
What is the tone and mood of the speakers? Positive Negative Neutral
What is the source of the human voice in the audio? Narration In-Video Voice Out-Video Voice
Picture 1: Video 1: Audio 1:
"""

CAPTIONS = """\
The video opens with a close-up of a young woman in a bright kitchen, wearing a white shirt and a \
black apron, who smiles at the camera while she slices fresh vegetables on a wooden cutting \
board. Upbeat pop music plays softly in the background, and the sharp, rhythmic sound of the \
knife can be heard throughout. White text at the top of the screen reads "EASY DINNER IN 10 \
MINUTES", which tells viewers what the clip is about.
The scene then shifts to an outdoor setting: a man in a blue jacket and dark jeans walks along a \
busy city street at night, surrounded by tall buildings, neon signs, parked cars and people who \
pass by. He speaks directly to the viewer in a calm, friendly voice, gesturing with his hands as \
he explains his opinion. Wind noise, traffic and distant laughter add to the mood.
A brown dog runs across a green field under a clear sky, jumps over a low fence and catches a red \
ball; its owner, an older man with grey hair, laughs and claps. The camera follows the animal \
from left to right, then zooms in on its face. No spoken words are present, only cheerful \
instrumental music with a light piano melody and steady drums.
Two children sit at a table in a classroom, drawing with yellow, orange, purple and pink pencils, \
while their teacher stands behind them near a large window. An animated overlay with subtitles \
appears at the bottom, along with emojis, arrows and a username. The tone is warm, playful and \
humorous, with an energetic, lighthearted and inspiring atmosphere.
Several shots show a basketball player in a gym, first dribbling, then shooting; the crowd cheers \
loudly, a whistle blows, and a male narrator comments with excitement. Later, three dancers \
perform together on a stage lit by colorful lights as the song becomes faster, more dramatic and \
intense. The video ends with a black screen and a logo, followed by silence.
Overall, the short clip serves as a tutorial, review, advertisement, reaction, interview or \
personal story, designed to inform, entertain or persuade its audience. It highlights a relatable \
everyday moment, emphasizing the contrast between expectation and reality, and it conveys a sense \
of surprise, sadness, anger, joy, tension, confidence or nostalgia.
A big rabbit with soft fur steps out of its burrow, stretches and looks around a sunny meadow \
full of grass, flowers, trees and butterflies. Somebody repairs bicycles beside a river bank. The \
picture is blurry, dark, static, vertical, cropped; the view pans slowly, tilts upward and cuts \
quickly. The speaker sounds serious, sarcastic, enthusiastic, nervous, loud or quiet.
There is no audible speech in this recording. There are no visible captions in this frame. The \
main subject remains in the center of the frame, near the middle, on the right side, in the upper \
corner, in the foreground, in the distance.
one two three four five six seven eight nine ten first second third last next before after during \
while until again
about above across against all also although always among another any appears around because \
become behind being below beneath beside between both but came can could did different do does \
done each either else even ever every few for found from front gave get give go going good great \
had hand hard has have head her here high him his hold home house how i if into is just keep kept \
know large left less like line little live look made make many may me might more most move much \
must my near need never new night not now off often old on once only open or order other our over \
own part people place play point put quite rather same saw say see seem set several she show side \
since small so some something still such take than them there these they thing think this those \
though through time to together too toward turn under up upon us use very was water way we well \
went were when where which whole why will with within without word work world would year yet you \
your
he's she's it's they're we're you've i'm don't can't won't isn't that's let's
hair face eyes hands arms legs body shirt dress hat glasses shoes coat bag phone computer table \
chair door wall floor ceiling bed sofa lamp mirror bottle cup plate food meat bread cake fruit \
coffee tea car bus train bike plane boat road bridge beach sea lake mountain forest snow rain sun \
moon star cloud fire smoke garden park shop store office school hospital church stadium \
restaurant bathroom bedroom studio guitar violin singing rap beat bass synth vocal chorus \
applause footsteps barking meow engine horn bell alarm explosion splash whisper shout scream cry \
sigh hum beep click crackle
red orange yellow green blue purple pink brown black white grey gray gold silver beige dark light \
bright
"""

LINES = [
    QUESTION,
    UPSTREAM_SYSTEM,
    *PROMPTS.splitlines(),
    *CAPTIONS.splitlines(),
    *corpus_sentences(),
]
