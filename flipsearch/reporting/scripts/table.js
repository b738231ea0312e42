// The leaderboard: all rows from the data block, sorted, filtered and searched; a row opens at full width.

const PAGE_ROWS = 40;
const FILTERS = ["state", "origin", "place", "only"];
const ONLY = [["", "all"], ["final", "finalists"], ["over", "over the cap"], ["within", "within the cap"]];

class LeaderboardTable {
  constructor(data, openAnswers) {
    this.data = data;
    this.openAnswers = openAnswers;
    this.body = byId("leaderboard");
    this.rowOf = new Map(data.rows.map((row, index) => [row.id, index]));
    this.state = { sort: "", down: false, q: "", page: 0, row: "", ...Object.fromEntries(FILTERS.map((f) => [f, ""])) };
    Object.assign(this.state, address.read());
    this.state.down = this.state.down === "true";
    this.state.page = 0;
    for (const row of data.rows) row.words = [row.name, row.text, row.params, row.id, row.origin].join("\n").toLowerCase();
    this.addControls();
    this.addSorting();
    if (this.state.row) this.showRow(this.state.row);
    else this.draw();
    addEventListener("hashchange", () => {
      const { row } = address.read();
      if (row && this.rowOf.has(row)) this.showRow(row);
    });
  }

  addControls() {
    const kinds = (name) => [["", "all"], ...[...new Set(this.data.rows.map((row) => row[name]))].sort().map((k) => [k, k])];
    const change = (name) => (value) => this.change({ [name]: value, page: 0 });
    const extra = make("input", { type: "checkbox" });
    extra.addEventListener("change", () => this.body.classList.toggle("all-columns", extra.checked));
    byId("controls").append(
      searchBox("search names and texts", this.state.q, change("q")),
      choice("state", kinds("state"), this.state.state, change("state")),
      choice("operator or template", kinds("origin"), this.state.origin, change("origin")),
      choice("placement", kinds("place"), this.state.place, change("place")),
      choice("show", ONLY, this.state.only, change("only")),
      make("label", { class: "check" }, extra, make("span", {}, "all columns")),
      button("Download these rows (CSV)", () => this.downloadRows()),
    );
  }

  addSorting() {
    for (const head of this.body.querySelectorAll("thead th[data-column]")) {
      const name = head.dataset.column;
      const label = head.querySelector(".head");
      const sorter = button("", () => this.change({ sort: name, down: this.nextOrder(name), page: 0 }), { class: "sorter" });
      sorter.append(...label.childNodes);
      label.replaceWith(sorter);
    }
  }

  /** Names and ranks rise at first, figures fall; the second click turns the order. */
  nextOrder(name) {
    if (this.state.sort === name) return !this.state.down;
    return !["rank", "context", "outcome", "num_context_tokens"].includes(name);
  }

  change(changes) {
    Object.assign(this.state, changes);
    const { page, ...kept } = this.state;
    address.write(kept);
    this.draw();
  }

  visibleRows() {
    const { q, state, origin, place, only, sort, down } = this.state;
    const wanted = q.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = this.data.rows.filter(
      (row) =>
        (!state || row.state === state) && (!origin || row.origin === origin) && (!place || row.place === place) &&
        (!only || (only === "final" && row.final) || (only === "over" && row.over) || (only === "within" && !row.over)) &&
        wanted.every((word) => row.words.includes(word)),
    );
    const column = this.data.columns.findIndex(([name]) => name === sort);
    if (column < 0) return rows;
    const order = (a, b) => {
      const [x, y] = [a.cells[column][2], b.cells[column][2]];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    return rows.sort(order);
  }

  draw() {
    const rows = this.visibleRows();
    const { page, sort, down, row: open } = this.state;
    const shown = rows.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS);
    for (const body of [...this.body.tBodies]) body.remove();
    this.body.append(...shown.map((row) => this.bodyOf(row, row.id === open)));
    for (const head of this.body.querySelectorAll("thead th[data-column]")) {
      const order = head.dataset.column === sort ? (down ? "descending" : "ascending") : "none";
      head.setAttribute("aria-sort", order);
    }
    showPager(byId("pages"), rows.length, PAGE_ROWS, page, (next) => this.change({ page: next }));
    say(`${rows.length.toLocaleString("en")} contexts match`);
  }

  bodyOf(row, isOpen) {
    const cells = row.cells.map((cell, i) => this.cellOf(row, cell, this.data.columns[i], isOpen));
    const body = make("tbody", { id: row.id, class: `${row.style}${isOpen ? " open" : ""}` }, make("tr", {}, ...cells));
    if (isOpen) body.append(this.detailOf(row));
    return body;
  }

  cellOf(row, [text, small, , bars, whisker, warns], [name, label, isExtra], isOpen) {
    const tag = name === "context" ? "th" : "td";
    const cell = make(tag, { class: isExtra ? "extra" : null, scope: tag === "th" ? "row" : null, "data-label": label });
    if (bars.length) cell.append(drawBar(bars, whisker));
    if (name === "context") {
      const toggle = () => this.change({ row: isOpen ? "" : row.id });
      cell.append(button(text, () => { toggle(); this.focusOn(row.id); }, { class: "name", "aria-expanded": String(isOpen) }));
    } else cell.append(text);
    if (small) cell.append(make("small", { class: warns ? "over" : null }, small));
    return cell;
  }

  focusOn(id) {
    byId(id)?.querySelector(".name").focus();
  }

  /** Show one row wherever it is: filters that hide it are taken away, its page is turned to, and it is marked. */
  showRow(id) {
    const index = this.rowOf.get(id);
    if (index === undefined) {
      this.state.row = "";
      this.draw();
      return;
    }
    let place = this.visibleRows().findIndex((row) => row.id === id);
    if (place < 0) {
      Object.assign(this.state, { q: "", state: "", origin: "", place: "", only: "" });
      for (const field of byId("controls").querySelectorAll("input[type=search], select")) field.value = "";
      place = this.visibleRows().findIndex((row) => row.id === id);
    }
    this.change({ row: id, page: Math.floor(place / PAGE_ROWS) });
    const body = byId(id);
    body.classList.add("target");
    body.scrollIntoView({ block: "start" });
    this.focusOn(id);
  }

  detailOf(row) {
    const parts = [this.actionsOf(row)];
    if (row.params) parts.push(make("p", { class: "soft" }, row.params));
    const text = make("div", {}, make("h4", {}, "Text"), make("pre", { tabindex: "0" }, row.text || "(no text)"));
    const sides = [text];
    if (row.change.length) {
      const marked = row.change.map(([kind, words]) => make({ same: "span", removed: "del", added: "ins" }[kind], {}, words));
      const heading = make("h4", {}, "What changed in its parent, ", this.linkTo(row.parents[0]));
      sides.push(make("div", {}, heading, make("pre", { class: "change", tabindex: "0" }, ...marked)));
    }
    parts.push(make("div", { class: "sides" }, ...sides), ...this.lineageOf(row), ...this.categoriesOf(row));
    const cell = make("td", { colspan: row.cells.length }, make("div", { class: "detail" }, ...parts));
    return make("tr", { class: "detail-row" }, cell);
  }

  actionsOf(row) {
    const actions = [
      button("Copy text", () => copy(row.text, "text")),
      button("Download text", () => download(`${row.id}.txt`, `${row.text}\n`)),
      button("Copy link", () => copy(address.link(row.id), "link")),
    ];
    if (row.card) {
      const card = JSON.stringify(row.card, null, 2);
      actions.push(button("Download card", () => download(`${row.id}.json`, card, "application/json")));
    }
    if (this.openAnswers.has(row.id)) {
      actions.push(button("Read the answers under it", () => this.openAnswers.show({ context: row.id })));
    }
    return make("p", { class: "actions" }, ...actions);
  }

  linkTo(id) {
    const row = this.data.rows[this.rowOf.get(id)];
    if (!row) return make("span", {}, id);
    return make("a", { href: `#${id}`, onclick: (event) => { event.preventDefault(); this.showRow(id); } }, row.name);
  }

  /** The chain of ancestors along the first parents, and the other parent of a crossover. */
  lineageOf(row) {
    if (!row.parents.length) return [];
    const chain = [];
    for (let next = row.parents[0]; next && !chain.includes(next) && next !== row.id; ) {
      chain.push(next);
      next = this.data.rows[this.rowOf.get(next)]?.parents[0];
    }
    const line = make("p", {}, make("b", {}, "Made from "));
    chain.forEach((id, i) => line.append(i ? " ← " : "", this.linkTo(id)));
    if (row.parents.length > 1) line.append(", crossed with ", ...row.parents.slice(1).map((id) => this.linkTo(id)));
    return [line];
  }

  categoriesOf(row) {
    if (!row.categories.length) return [];
    const rows = row.categories.map(([name, flips, num]) => {
      const share = (100 * flips) / num;
      const bar = drawBar([["good", 0, share]], null);
      return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, bar), make("td", { class: "n" }, `${flips} of ${num}`));
    });
    const body = make("tbody", {}, ...rows);
    return [make("table", { class: "categories" }, make("caption", {}, "Flips by category of prompt"), body)];
  }

  /** What a spreadsheet would run as a formula gets an apostrophe: names and texts are hostile. */
  downloadRows() {
    const inert = (text) => (/^['\s\u3000]*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) && isNaN(text) ? `'${text}` : text);
    const quoted = (value) => `"${inert(String(value ?? "")).replaceAll('"', '""')}"`;
    const head = [...this.data.columns.map(([name]) => name), "context_id", "params", "text"];
    const lines = this.visibleRows().map((row) => [...row.cells.map((cell) => cell[2]), row.id, row.params, row.text]);
    download(`${this.data.study}.csv`, [head, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n", "text/csv");
  }
}

function drawBar(bars, whisker) {
  const parts = bars.map(([style, x, width]) => make("rect", { class: style, x, width, height: 10 }));
  if (whisker) parts.push(make("line", { class: "whisker", x1: whisker[0], x2: whisker[1], y1: 5, y2: 5 }));
  const track = make("rect", { class: "track", width: 100, height: 10 });
  return make("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, track, ...parts);
}
