// A caption whose words have the colours of what they rest on, with a small curve over time where
// there is one: under the mouse, and by keyboard, where Tab reaches the first word and the arrow keys
// the others. Texts are set as text, never as HTML.
'use strict';
const evidence = (() => {
  const NAMES = {
    heard: 'heard', seen: 'seen', both: 'needs both', either: 'heard and seen',
    text: 'from the text alone', unsupported: 'no support',
  };
  const SVG = 'http://www.w3.org/2000/svg';
  let tip = null;

  function element(tag, kind, text) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  /** What a word loses: without sound, without picture, without both, in nats. */
  function losses(word) {
    const [full, noSound, noPicture, neither] = word.logprobs;
    return [full - noSound, full - noPicture, full - neither].map(loss => loss.toFixed(2));
  }

  function describe(word) {
    const [sound, picture, both] = losses(word);
    return `${word.word}: ${NAMES[word.verdict]}; nats lost without sound ${sound}, without `
      + `picture ${picture}, without both ${both}`;
  }

  /** Bars of what is lost without each part of the time, on one scale for sound and picture. */
  function curve(values, most, kind, times) {
    const [width, height] = [120, 26];
    const made = document.createElementNS(SVG, 'svg');
    made.setAttribute('viewBox', `0 0 ${width} ${height}`);
    made.setAttribute('class', `e-curve e-${kind}`);
    const step = width / values.length;
    values.forEach((value, place) => {
      const bar = document.createElementNS(SVG, 'rect');
      const tall = Math.max(1, value / most * height);
      const shape = { x: place * step, y: height - tall, width: Math.max(1, step - 1), height: tall };
      for (const [name, number] of Object.entries(shape)) bar.setAttribute(name, number.toFixed(1));
      made.append(bar);
    });
    const row = element('div', 'e-row');
    const [first, last] = [times[0]?.[0] ?? 0, times.at(-1)?.[1] ?? 0];
    row.append(element('span', '', kind === 'heard' ? 'sound' : 'picture'), made,
      element('span', 'e-times', `${first} to ${last} s`));
    return row;
  }

  function show(span, word, times) {
    hide();
    tip = element('div', 'e-tip');
    tip.append(element('div', '', describe(word)));
    if (word.curve) {
      const most = Math.max(0.3, ...word.curve.audio, ...word.curve.vision);
      tip.append(curve(word.curve.audio, most, 'heard', times));
      tip.append(curve(word.curve.vision, most, 'seen', times));
    }
    document.body.append(tip);
    const at = span.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${at.bottom + 4 + window.scrollY}px`;
  }

  function hide() {
    if (tip) tip.remove();
    tip = null;
  }

  /** Which word a key leads to from one of some words; undefined for other keys. */
  function next(key, words, word) {
    const place = words.indexOf(word);
    const [first, last] = [0, words.length - 1];
    return {
      ArrowRight: words[Math.min(place + 1, last)], ArrowLeft: words[Math.max(place - 1, first)],
      Home: words[first], End: words[last],
    }[key];
  }

  function onKey(event, words) {
    if (event.key === 'Escape') hide();
    const to = next(event.key, words, event.target);
    if (!to) return;
    event.preventDefault();
    event.stopPropagation(); // a page may have the arrow keys for something else
    for (const word of words) word.tabIndex = word === to ? 0 : -1;
    to.focus();
  }

  /** The text in parts: strings, and spans for its content words. told: `evidence` of a caption. */
  function text(caption, told) {
    const letters = [...caption]; // places count characters, not UTF-16 units
    const [parts, words] = [[], []];
    let from = 0;
    for (const word of told.words) {
      if (!word.content) continue;
      parts.push(letters.slice(from, word.start).join(''));
      const span = element('span', `e-word e-${word.verdict}`);
      span.textContent = letters.slice(word.start, word.end).join('');
      span.setAttribute('aria-description', describe(word));
      for (const kind of ['pointerenter', 'focus']) {
        span.addEventListener(kind, () => show(span, word, told.times ?? []));
      }
      for (const kind of ['pointerleave', 'blur']) span.addEventListener(kind, hide);
      span.tabIndex = words.length ? -1 : 0; // one stop a caption
      span.addEventListener('keydown', event => onKey(event, words));
      parts.push(span);
      words.push(span);
      from = word.end;
    }
    parts.push(letters.slice(from).join(''));
    return parts.filter(part => part !== '');
  }

  /** The colours with the shares of a caption's content words. */
  function legend(told) {
    const made = element('p', 'e-legend');
    for (const [verdict, share] of Object.entries(told.shares)) {
      if (!share) continue;
      const item = element('span', 'e-item');
      item.append(element('span', `e-word e-${verdict}`, NAMES[verdict]),
        ` ${Math.round(100 * share)} %`);
      made.append(item);
    }
    return made;
  }

  return { text, legend };
})();
