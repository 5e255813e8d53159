"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---- tables: a click or Enter on a heading sorts, again turns the order round -----------------------------------
  for (const table of all("table.sortable")) {
    all("th button", table).forEach((button, column) => {
      button.addEventListener("click", () => {
        const heading = button.closest("th");
        const down = heading.getAttribute("aria-sort") === "ascending";
        all("th", table).forEach((th) => th.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)], [p, q] = [parseFloat(x), parseFloat(y)];
          if (x === "" || y === "") return (x === "") - (y === "");   // cells without a value stay last
          const order = heading.dataset.kind === "number" ? p - q : x.localeCompare(y, undefined, { numeric: true });
          return down ? -order : order;
        });
        body.append(...rows);
      });
    });
  }

  // ---- the token view ---------------------------------------------------------------------------------------------
  const store = document.getElementById("token-data");
  if (!store) return;
  const data = JSON.parse(store.textContent);
  const pick = document.getElementById("pick-document"), by = document.getElementById("pick-shade");
  const panels = all(".panel").map((root) => ({
    root, rule: root.querySelector("[data-pick=rule]"), layer: root.querySelector("[data-pick=layer]"),
    head: root.querySelector("[data-pick=head]"), text: root.querySelector(".text"),
    detail: root.querySelector(".detail"), low: root.querySelector(".low"), high: root.querySelector(".high"),
    share: [], rank: [],
  }));
  let page = null, here = -1, asked = 0;

  const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
  const fill = (select, entries, wish) => {
    select.replaceChildren(...entries.map(([text, value]) => option(text, value)));
    if (entries.some(([, value]) => String(value) === String(wish))) select.value = wish;
  };
  const percent = (x) => `${x > 0 && x < 0.005 ? "<1" : Math.round(100 * x)}%`;

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const whole = new Uint8Array(await new Response(stream).arrayBuffer());
    const length = new DataView(whole.buffer).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(whole.subarray(4, 4 + length)));
    return { ...head, bytes: whole.subarray(4 + length) };
  }

  // Arrays are [layers or 1, heads or 1, tokens]; a dimension of 1 stands for all of them.
  function average(array, read, tokens, layers, heads) {
    const [L, H] = array.shape, out = new Float64Array(tokens);
    const ls = L === 1 ? [0] : layers, hs = H === 1 ? [0] : heads;
    for (const l of ls) for (const h of hs) {
      const from = (l * H + h) * tokens;
      for (let i = 0; i < tokens; i++) out[i] += read(array.offset, from + i);
    }
    return out.map((x) => x / (ls.length * hs.length));
  }
  const bit = (offset, i) => (page.bytes[offset + (i >> 3)] >> (7 - (i & 7))) & 1;
  const byte = (offset, i) => page.bytes[offset + i] / 255;
  const bfloat = (offset, i) => {
    const view = new DataView(new ArrayBuffer(4));
    view.setUint16(0, page.bytes[offset + 2 * i] | (page.bytes[offset + 2 * i + 1] << 8));
    return view.getFloat32(0);
  };

  function compute(panel) {
    const rule = page.rules[panel.rule.value], n = page.pieces.length;
    const layers = panel.layer.value === "all" ? rule.layers : [Number(panel.layer.value)];
    const heads = panel.head.value === "all" ? rule.heads : [Number(panel.head.value)];
    panel.entries = layers.length * heads.length;
    panel.share = average(rule.selection, bit, n, layers, heads);
    panel.rank = rule.rank ? average(rule.rank, byte, n, layers, heads) : null;
    panel.rankGrain = rule.rank ? rule.rank.grain : "";
    panel.raw = rule.raw;
  }
  function shade(panel) {
    compute(panel);
    const ranks = by.value === "rank" && panel.rank;
    const candidate = (i) => i >= page.first && i < page.stop;
    const values = ranks ? panel.rank : panel.share;
    panel.low.textContent = ranks ? "lowest score" : panel.entries > 1 ? "selected by no head" : "not selected";
    panel.high.textContent = ranks ? "highest score" : panel.entries > 1 ? "by every head" : "selected";
    all(".t", panel.text).forEach((token, i) => {
      const value = ranks ? values[i] ** 2 : values[i];       // squared: the top of the ranking is what stands out
      token.style.setProperty("--s", candidate(i) || !ranks ? (0.85 * value).toFixed(3) : 0);
    });
    describe(panel);
  }
  function describe(panel) {
    if (here < 0) { panel.detail.textContent = "Point at a token, or use the arrow keys in the text."; return; }
    const rule = page.rules[panel.rule.value], i = here;
    const parts = [`Token ${i} ${JSON.stringify(page.pieces[i])}`];
    if (i < page.first || i >= page.stop) parts.push("protected: no rule may select it");
    else {
      const count = Math.round(panel.share[i] * panel.entries);
      parts.push(panel.entries > 1
        ? `selected in ${count} of ${panel.entries} layer-heads (${percent(panel.share[i])})`
        : panel.share[i] > 0.5 ? "selected" : "not selected");
      if (panel.raw) {
        const value = bfloat(panel.raw.offset, i);
        if (Number.isFinite(value)) parts.push(`score ${Number(value.toPrecision(2))}${panel.raw.grain}`);
      }
      if (panel.rank) {
        const mean = panel.entries > 1 && rule.rank.shape[0] * rule.rank.shape[1] > 1 ? ", on average" : "";
        parts.push(`scores above ${percent(panel.rank[i])} of candidates${mean}${panel.rankGrain}`);
      }
    }
    panel.detail.textContent = `${rule.label}. ${parts.join("; ")}.`;
  }
  function point(i, focus) {
    for (const panel of panels) {
      const tokens = panel.text.children;
      if (tokens[here]) { tokens[here].classList.remove("here"); tokens[here].tabIndex = -1; }
      if (tokens[i]) { tokens[i].classList.add("here"); tokens[i].tabIndex = 0; }
    }
    here = i;
    panels.forEach(describe);
    if (focus) focus.text.children[i].focus();
  }
  function write(panel) {
    panel.text.replaceChildren(...page.pieces.map((piece, i) => {
      const span = document.createElement("span");
      span.className = i >= page.first && i < page.stop ? "t" : "t kept";
      span.tabIndex = i === 0 ? 0 : -1;
      span.dataset.i = i;
      span.textContent = piece.replaceAll("\n", "\u21b5\n");
      return span;
    }));
  }
  function grains(panel) {
    const rule = page.rules[panel.rule.value];
    fill(panel.layer, [["all", "all"], ...rule.layers.map((l) => [String(page.layers[l]), l])], panel.layer.value);
    fill(panel.head, [["all", "all"], ...rule.heads.map((h) => [String(h), h])], panel.head.value);
  }

  async function show() {
    const ticket = ++asked;
    const next = await unpack(data.documents[pick.value].packed);
    if (ticket !== asked) return;                                  // another document was chosen meanwhile
    page = next; here = -1;
    panels.forEach((panel, k) => {
      const before = panel.rule.selectedOptions[0]?.textContent;
      const entries = page.rules.map((rule, i) => [rule.label, i]);
      const same = entries.find(([label]) => label === before);
      fill(panel.rule, entries, same ? same[1] : Math.min(k, entries.length - 1));
      grains(panel); write(panel); shade(panel);
    });
    document.getElementById("token-view").dataset.ready = pick.value;
  }

  pick.addEventListener("change", show);
  by.addEventListener("change", () => panels.forEach(shade));
  for (const panel of panels) {
    panel.rule.addEventListener("change", () => { grains(panel); shade(panel); });
    panel.layer.addEventListener("change", () => shade(panel));
    panel.head.addEventListener("change", () => shade(panel));
    panel.text.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".t");
      if (token) point(Number(token.dataset.i));
    });
    panel.text.addEventListener("focusin", (event) => {
      const token = event.target.closest(".t");
      if (token && Number(token.dataset.i) !== here) point(Number(token.dataset.i));
    });
    panel.text.addEventListener("keydown", (event) => {
      const last = page.pieces.length - 1, at = Math.max(here, 0);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: last };
      if (!(event.key in to)) return;
      event.preventDefault();
      point(Math.min(Math.max(to[event.key], 0), last), panel);
    });
    panel.text.addEventListener("scroll", () => {
      for (const other of panels) if (other !== panel) other.text.scrollTop = panel.text.scrollTop;
    });
  }
  show().catch((error) => {
    panels.forEach((panel) => { panel.detail.textContent = `This browser cannot unpack the token view (${error}).`; });
  });
})();
