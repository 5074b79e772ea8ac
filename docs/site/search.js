// Search over the site's index, with no request: a script that the page loads beside it defines kamadoIndex.
// Words match from their beginning ("stream" finds streaming); Japanese and Chinese text is matched by pairs of
// characters. The page's own logic is below `find`, and is left out where there is no document (tests).
"use strict";

const kamadoSearch = (() => {
  const CJK = "\\u3005\\u3041-\\u30fa\\u30fc-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff\\uff66-\\uff9f";
  const RUNS = new RegExp(`[${CJK}]+|[\\p{L}\\p{N}_]+?(?=[${CJK}])|[\\p{L}\\p{N}_]+`, "gu");
  const IS_CJK = new RegExp(`^[${CJK}]`, "u");
  const WEIGHTS = [0, 3, 8, 1]; // of a section's address, its page's title, its own title, its text
  const MAX_TERMS = 32; // of a query
  const MAX_RESULTS = 20;

  /** The terms of a text: words in small letters, and the pairs of neighbours of each run of CJK characters. */
  function terms(text) {
    const found = [];
    for (const [run] of text.normalize("NFKC").toLowerCase().matchAll(RUNS)) {
      const chars = [...run];
      if (!IS_CJK.test(run) || chars.length === 1) found.push(run);
      else for (let i = 0; i + 1 < chars.length; i++) found.push(chars[i] + chars[i + 1]);
    }
    return found;
  }

  /** For each term the sections that have it, with a weight: a Map of Maps; and the terms in their order. */
  function prepared(sections) {
    const lists = new Map();
    sections.forEach((section, id) => {
      section.forEach((text, part) => {
        if (!WEIGHTS[part]) return;
        for (const term of terms(text)) {
          if (!lists.has(term)) lists.set(term, new Map());
          const list = lists.get(term);
          list.set(id, (list.get(id) ?? 0) + WEIGHTS[part]);
        }
      });
    });
    return { lists, sorted: [...lists.keys()].sort() };
  }

  /** Each section that has the term, with its weight; a word also stands for those that begin with it. */
  function having(ready, term) {
    const found = new Map();
    const add = (word, share) => {
      for (const [id, weight] of ready.lists.get(word)) {
        found.set(id, Math.max(found.get(id) ?? 0, Math.log2(1 + weight) * share));
      }
    };
    if (IS_CJK.test(term) && [...term].length > 1) {
      if (ready.lists.has(term)) add(term, 1);
      return found;
    }
    let low = 0;
    for (let high = ready.sorted.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (ready.sorted[middle] < term) low = middle + 1;
      else high = middle;
    }
    for (let i = low; i < ready.sorted.length && ready.sorted[i].startsWith(term); i++) {
      add(ready.sorted[i], ready.sorted[i] === term ? 1 : 0.5);
    }
    return found;
  }

  /** The sections that have all terms of the query, the best first; an empty list when there is none. */
  function find(index, query) {
    const wanted = [...new Set(terms(query))].slice(0, MAX_TERMS);
    if (!wanted.length) return [];
    const ready = (index.ready ??= prepared(index.sections));
    let scores = null;
    for (const term of wanted) {
      const found = having(ready, term);
      const rarity = Math.log(1 + index.sections.length / (1 + found.size));
      const next = new Map();
      for (const [id, weight] of found) {
        if (scores === null || scores.has(id)) next.set(id, (scores?.get(id) ?? 0) + weight * rarity);
      }
      scores = next;
    }
    return [...scores]
      .sort(([a, x], [b, y]) => y - x || a - b)
      .slice(0, MAX_RESULTS)
      .map(([id]) => index.sections[id]);
  }

  /** About 160 characters of the text around the first place of the query's words. */
  function excerpt(text, query) {
    const small = text.toLowerCase();
    const places = terms(query).map((term) => small.indexOf(term)).filter((place) => place >= 0);
    const start = places.length ? Math.max(0, Math.min(...places) - 50) : 0;
    return (start ? "…" : "") + text.slice(start, start + 160) + (start + 160 < text.length ? "…" : "");
  }

  return { terms, find, excerpt };
})();

globalThis.kamadoSearch = kamadoSearch;

if (typeof document !== "undefined") {
  const field = document.getElementById("frame-query");
  const list = document.getElementById("frame-results");
  const root = document.documentElement.dataset.root; // the way to the site's first page

  /** Shows the results for what stands in the field. Texts of pages become text nodes and nothing else. */
  function show() {
    const query = field.value;
    const found = globalThis.kamadoIndex ? kamadoSearch.find(globalThis.kamadoIndex, query) : [];
    list.replaceChildren(
      ...found.map(([url, page, title, text]) => {
        const item = document.createElement("li");
        const link = document.createElement("a");
        link.href = root + url;
        link.textContent = title === page ? page : `${page}: ${title}`;
        const line = document.createElement("p");
        line.textContent = kamadoSearch.excerpt(text, query);
        item.append(link, line);
        return item;
      }),
    );
    list.hidden = !query.trim();
    list.dataset.count = String(found.length);
  }

  /** The index is loaded when it is first needed: it is the largest file here. */
  function begin() {
    const script = document.createElement("script");
    script.src = `${root}search-index.js`;
    script.addEventListener("load", show);
    document.head.append(script);
  }

  field.addEventListener("focus", begin, { once: true });
  field.addEventListener("input", show);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") list.querySelector("a")?.click();
    if (event.key === "Escape") { field.value = ""; show(); }
  });
}
