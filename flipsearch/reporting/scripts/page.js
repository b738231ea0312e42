// What every part of the page uses. All texts in the data are hostile: they become text nodes, never markup.

const byId = (id) => document.getElementById(id);

/** Make an element; children are elements or texts, attributes that are null or false are left out. */
function make(tag, attributes = {}, ...children) {
  const isDrawn = ["svg", "rect", "line"].includes(tag);
  const made = isDrawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

/** Read a block of the page: JSON, gzip, base64. */
async function unpack(id) {
  const binary = atob(byId(id).textContent.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(plain).text());
}

/** Say something to readers of the screen, and to those who hear it. */
function say(text) {
  byId("status").textContent = text;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied`);
}

function download(name, text, type = "text/plain") {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
  say(`${name} downloaded`);
}

const button = (text, onclick, attributes = {}) => make("button", { type: "button", onclick, ...attributes }, text);

/** A select with a label; the first option is "" and stands for all. */
function choice(label, options, value, onchange) {
  const select = make("select", { onchange: (event) => onchange(event.target.value) });
  for (const [key, text] of options) select.append(make("option", { value: key, selected: key === value }, text));
  return make("label", {}, make("span", {}, label), select);
}

function searchBox(label, value, oninput) {
  let waits = 0;
  const input = make("input", { type: "search", value });
  input.addEventListener("input", () => {
    clearTimeout(waits);
    waits = setTimeout(() => oninput(input.value), 120);
  });
  return make("label", {}, make("span", {}, label), input);
}

/** Show buttons for the pages of a list of `num` things, `size` to a page; the one that was pressed keeps the focus. */
function showPager(place, num, size, page, turn) {
  const count = (value) => value.toLocaleString("en");
  if (num <= size) {
    place.replaceChildren(make("p", { class: "soft" }, num ? `${count(num)} shown` : "Nothing matches."));
    return;
  }
  const turner = (text, next, isLast) => {
    const press = () => {
      turn(next);
      (place.querySelector(`[data-turn=${text}]:enabled`) ?? place.querySelector("button:enabled"))?.focus();
    };
    return button(text, press, { disabled: isLast, "data-turn": text });
  };
  const [from, to] = [page * size + 1, Math.min(num, (page + 1) * size)];
  const range = make("span", {}, ` ${count(from)}–${count(to)} of ${count(num)} `);
  place.replaceChildren(turner("Previous", page - 1, page === 0), range, turner("Next", page + 1, to === num));
}

/** The state of the page in its address, so that a link shows what its sender saw: #sort=net&row=… or #row alone. */
const address = {
  read() {
    const hash = location.hash.slice(1);
    return hash.includes("=") ? Object.fromEntries(new URLSearchParams(hash)) : hash ? { row: hash } : {};
  },
  write(changes) {
    const state = { ...this.read(), ...changes };
    const kept = Object.entries(state).filter(([, value]) => value !== "" && value !== null && value !== false);
    history.replaceState(null, "", kept.length ? `#${new URLSearchParams(kept)}` : location.pathname + location.search);
  },
  link(row) {
    return `${location.href.split("#")[0]}#${row}`;
  },
};

for (const copied of document.querySelectorAll("[data-copies]")) {
  const source = byId(copied.dataset.copies);
  copied.hidden = false;
  copied.addEventListener("click", () => copy(source.textContent, copied.dataset.what));
}
for (const saved of document.querySelectorAll("[data-saves]")) {
  saved.hidden = false;
  saved.addEventListener("click", () => download(saved.dataset.name, `${byId(saved.dataset.saves).textContent}\n`));
}
