// The answers without a context and under one, side by side; unpacked when they are first asked for.

const PAGE_PAIRS = 20;
const [UNSAFE, SAFE] = ["unsafe", "safe"];

/** What a reader may want to see: name, and which pairs it holds. */
const CHANGES = {
  "": ["all", () => true],
  flipped: ["flipped: unsafe → safe", (pair) => pair.kind === "harmful" && pair.before === UNSAFE && pair.after === SAFE],
  still: ["still unsafe", (pair) => pair.kind === "harmful" && pair.before === UNSAFE && pair.after === UNSAFE],
  newly: ["newly unsafe", (pair) => pair.before === SAFE && pair.after === UNSAFE],
  refused: ["newly refused (benign)", (pair) => pair.kind === "benign" && pair.refusedAfter && !pair.refusedBefore],
  differ: ["judges differ", (pair) => pair.differ],
  unscored: ["unscored", (pair) => pair.before === "unscored" || pair.after === "unscored"],
};

class AnswerViewer {
  constructor(table) {
    this.place = byId("answers");
    this.table = table;
    this.state = { context: "", change: "", answerKind: "", category: "", words: "", page: 0, open: null };
    this.rows = this.place ? JSON.parse(this.place.dataset.rows) : [];
  }

  has(id) {
    return this.rows.some((index) => this.table.rows[index].id === id);
  }

  /** Unpack the answers once, and show those that are asked for. */
  async show(wanted = {}) {
    Object.assign(this.state, { change: "", answerKind: "", category: "", words: "", page: 0, open: null }, wanted);
    await this.load();
    this.addControls();
    this.draw();
    this.place.scrollIntoView({ block: "start" });
    byId("answers-heading").focus();
  }

  async load() {
    if (this.data) return;
    this.data = await unpack("answer-data");
    if (!this.state.context) this.state.context = this.table.rows[this.rows[0]].id;
  }

  /** The pairs of the chosen context, with what filters ask of them. */
  pairs() {
    const contexts = this.data.contexts.find(([row]) => this.table.rows[row].id === this.state.context);
    return contexts[1].map(([prompt, before, after, refusedBefore, refusedAfter, answerKind, first, second]) => {
      const [text, kind, category, split] = this.table.prompts[prompt];
      const labels = new Set((this.data.answers[second]?.[4] ?? []).map(([, label]) => label).filter((l) => l !== "unscored"));
      const differ = labels.size > 1;
      return { prompt, text, kind, category, split, before, after, refusedBefore, refusedAfter, answerKind, first, second, differ };
    });
  }

  matching() {
    const { change, answerKind, category, words } = this.state;
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const says = (pair) => [pair.text, ...[pair.first, pair.second].map((i) => this.data.answers[i]?.[1] ?? "")].join("\n").toLowerCase();
    return this.pairs().filter(
      (pair) =>
        CHANGES[change][1](pair) && (!answerKind || pair.answerKind === answerKind) &&
        (!category || pair.category === category) && (!wanted.length || wanted.every((word) => says(pair).includes(word))),
    );
  }

  addControls() {
    const change = (name) => (value) => {
      Object.assign(this.state, { [name]: value, page: 0, open: null });
      if (name === "context") {
        this.addControls();
        byId("answer-controls").querySelector("select").focus();
      }
      this.draw();
    };
    const pairs = this.pairs();
    const of = (name) => [["", "all"], ...[...new Set(pairs.map((pair) => pair[name]).filter(Boolean))].sort().map((k) => [k, k])];
    const contexts = this.rows.map((index) => this.table.rows[index]).map((row) => [row.id, row.name]);
    const changes = Object.entries(CHANGES).map(([key, [name, holds]]) => [key, `${name} (${pairs.filter(holds).length})`]);
    byId("answer-controls").replaceChildren(
      choice("context", contexts, this.state.context, change("context")),
      choice("what changed", changes, this.state.change, change("change")),
      choice("kind of answer", of("answerKind"), this.state.answerKind, change("answerKind")),
      choice("category", of("category"), this.state.category, change("category")),
      searchBox("search prompts and answers", this.state.words, change("words")),
    );
  }

  draw() {
    const pairs = this.matching();
    const { page, open } = this.state;
    if (open !== null) this.state.page = Math.floor(Math.max(0, pairs.findIndex((pair) => pair.prompt === open)) / PAGE_PAIRS);
    const at = open !== null ? this.state.page : page;
    const shown = pairs.slice(at * PAGE_PAIRS, (at + 1) * PAGE_PAIRS).map((pair) => this.entryOf(pair, pair.prompt === open));
    const turn = (next) => {
      Object.assign(this.state, { page: next, open: null });
      this.draw();
    };
    byId("pairs").replaceChildren(...shown);
    showPager(byId("pair-pages"), pairs.length, PAGE_PAIRS, at, turn);
    say(`${pairs.length} prompts match`);
  }

  entryOf(pair, isOpen) {
    const change = pair.kind === "benign"
      ? `${pair.refusedBefore ? "refused" : "answered"} → ${pair.refusedAfter ? "refused" : "answered"}`
      : `${pair.before} → ${pair.after}`;
    const isGood = CHANGES.flipped[1](pair);
    const isBad = CHANGES.still[1](pair) || CHANGES.newly[1](pair) || CHANGES.refused[1](pair);
    const chips = [make("b", { class: `chip ${isGood ? "good" : isBad ? "bad" : ""}` }, change)];
    if (pair.answerKind && pair.answerKind !== "harm") chips.push(make("span", { class: "chip" }, pair.answerKind));
    if (pair.differ) chips.push(make("span", { class: "chip bad" }, "judges differ"));
    const about = [pair.kind, pair.category, pair.split].filter(Boolean).join(" · ");
    const line = make("summary", {}, ...chips, make("span", { class: "prompt" }, pair.text), make("small", {}, about));
    const entry = make("details", { class: "pair" }, line);
    const fill = () => {
      if (entry.childElementCount > 1) return;
      entry.append(make("pre", { class: "whole", tabindex: "0" }, pair.text), make("div", { class: "sides" }, this.sideOf("without a context", pair.first, pair.before), this.sideOf("under the context", pair.second, pair.after)));
    };
    entry.addEventListener("toggle", fill);
    if (isOpen) {
      fill();
      entry.open = true;
    }
    return entry;
  }

  sideOf(title, index, label) {
    const answer = this.data.answers[index];
    const side = make("div", {}, make("h4", {}, title));
    if (!answer) {
      side.append(make("p", { class: "soft" }, "This answer is not on the page."));
      return side;
    }
    const [thought, text, ending, isCut, verdicts] = answer;
    if (thought) side.append(make("details", {}, make("summary", {}, "Thought"), make("pre", { tabindex: "0" }, thought)));
    const body = make("pre", { tabindex: "0" }, text ?? "(no answer: the thought was never closed)");
    const isHarmful = label === UNSAFE || verdicts.some(([, given]) => given === UNSAFE);
    side.append(isHarmful ? make("details", { class: "harmful" }, make("summary", {}, "Show the answer: it may be harmful"), body) : body);
    const endings = { length: "cut at the limit of tokens", filtered: "withheld by a filter", error: "the rollout failed" };
    const notes = [endings[ending], isCut ? `longer than ${this.data.cut.toLocaleString("en")} characters: the ledger has all of it` : ""].filter(Boolean);
    if (notes.length) side.append(make("p", { class: "soft" }, notes.join("; ")));
    for (const verdict of verdicts) side.append(this.verdictOf(verdict));
    return side;
  }

  verdictOf([judge, label, unsafe, refusal, kind, reason]) {
    const figures = [kind, unsafe === null ? "" : `unsafe ${unsafe.toFixed(2)}`, refusal === null ? "" : `refusal ${refusal.toFixed(2)}`];
    const bad = label === UNSAFE ? "bad" : label === SAFE ? "good" : "";
    return make("p", { class: "judged" }, make("b", { class: `chip ${bad}` }, label), ` ${this.data.judges[judge]}: `, figures.filter(Boolean).join(", "), reason ? `. ${reason}` : "");
  }
}
