// Words of one text that another one does not have.
const differing = (() => {
  const WORD = /[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+)*/gu;
  // Scripts without spaces have no words to compare in this way.
  const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
  const COMMON = new Set(('a an and are as at be been but by for from had has have he her his in into is '
    + 'it its of on or over she that the their them then there they this to under up was were which '
    + 'while who with').split(' '));

  const plain = word => word.toLowerCase().replace(/['’]s$/, '');

  function words(text) {
    return new Set((text.match(WORD) ?? []).map(plain));
  }

  /** `text` in parts: strings, and spans of a class around the words that `others` lack. */
  function parts(text, others, kind, title) {
    const known = words(others);
    const made = [];
    let from = 0;
    for (const { 0: word, index } of text.matchAll(WORD)) {
      const one = plain(word);
      const isLabel = text[index + word.length] === ':';
      if (isLabel || known.has(one) || COMMON.has(one) || UNSPACED.test(word)) continue;
      const span = document.createElement('span');
      span.className = kind;
      span.title = title;
      span.textContent = word;
      made.push(text.slice(from, index), span);
      from = index + word.length;
    }
    return [...made, text.slice(from)].filter(part => part !== '');
  }

  return { parts };
})();
