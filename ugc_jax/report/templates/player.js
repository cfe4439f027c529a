// Frames and sound of a clip, and a player that begins at the second that is clicked there.
const player = (() => {
  let playing = null; // the one element that plays

  const clock = seconds => {
    const whole = Math.floor(seconds);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
  };

  /** The box of a clip. picture: as in pictures.py. */
  function media(id, picture) {
    const rows = [];
    if (picture.frames) rows.push(track('frames', `Six frames of ${id}`, picture.frames, picture.seen));
    if (picture.mel) rows.push(track('mel', `Mel spectrogram of the sound of ${id}`, picture.mel, picture.heard));
    else rows.push(element('p', { class: 'silent' }, 'no sound'));
    const box = element('div', { class: 'media' }, ...rows,
      ...picture.notes.map(note => element('p', { class: 'note' }, note)));
    if (picture.play) makePlayable(box, id, picture);
    return box;
  }

  function track(kind, alt, src, seconds) {
    const made = element('div', { class: 'track', 'data-seconds': seconds },
      element('img', { class: kind, src, alt, decoding: 'async' }));
    return made;
  }

  function makePlayable(box, id, picture) {
    let medium = null;
    const button = element('button', { type: 'button', class: 'play' }, `Play ${clock(picture.seconds)}`);
    const heads = [...box.querySelectorAll('.track')].map(place => {
      const head = element('span', { class: 'playhead', 'aria-hidden': 'true' });
      head.hidden = true;
      place.append(head);
      place.classList.add('seeks');
      place.title = 'Play from here';
      place.addEventListener('click', event => {
        const { left, width } = place.getBoundingClientRect();
        play(Math.max(0, (event.clientX - left) / width) * Number(place.dataset.seconds));
      });
      return [head, Number(place.dataset.seconds)];
    });

    function move() {
      for (const [head, seconds] of heads) {
        head.hidden = false;
        head.style.left = `${Math.min(100, 100 * medium.currentTime / seconds)}%`;
      }
    }

    function open() {
      const tag = picture.kind === 'audio' ? 'audio' : 'video';
      medium = element(tag, {
        controls: '', playsinline: '', preload: 'auto', src: picture.play, 'aria-label': `Clip ${id}`,
      });
      medium.addEventListener('timeupdate', move);
      medium.addEventListener('play', () => {
        if (playing && playing !== medium) playing.pause();
        playing = medium;
      });
      medium.addEventListener('error', () => {
        const name = decodeURIComponent(picture.play.startsWith('data:') ? id : picture.play);
        const text = `${name} cannot be played: it is not there, or of a codec that this browser lacks`;
        medium.replaceWith(element('p', { class: 'note bad', role: 'alert' }, text));
      });
      box.prepend(medium);
      button.remove();
    }

    function play(seconds) {
      if (!medium) open();
      const start = () => {
        medium.currentTime = seconds;
        medium.play().catch(() => {}); // a browser may ask for a click on the player itself
      };
      if (medium.readyState >= 1) start();
      else medium.addEventListener('loadedmetadata', start, { once: true });
    }

    button.addEventListener('click', () => {
      play(0);
      medium.focus();
    });
    box.append(button);
  }

  return { media };
})();
