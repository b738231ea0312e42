// Which context flips which prompt: one pixel a pair, drawn large; a click opens the pair.

class PairMatrix {
  constructor(data, openPair) {
    this.canvas = byId("matrix");
    this.matrix = data.matrix;
    this.data = data;
    this.canvas.width = this.matrix.prompts.length;
    this.canvas.height = this.matrix.rows.length;
    this.canvas.style.height = `${Math.min(420, Math.max(120, 9 * this.matrix.rows.length))}px`;
    this.canvas.addEventListener("mousemove", (event) => this.describe(event));
    this.canvas.addEventListener("click", (event) => openPair(...this.pairAt(event)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.draw();
  }

  draw() {
    const style = getComputedStyle(document.documentElement);
    const colours = { f: "--flips", u: "--stays", x: "--soft", ".": "--line" };
    const channels = Object.fromEntries(Object.entries(colours).map(([letter, name]) => [letter, channelsOf(style.getPropertyValue(name))]));
    const drawing = this.canvas.getContext("2d");
    const image = drawing.createImageData(this.canvas.width, this.canvas.height);
    this.matrix.rows.forEach((row, y) => {
      for (let x = 0; x < row.length; x += 1) image.data.set([...channels[row[x]], 255], 4 * (y * this.canvas.width + x));
    });
    drawing.putImageData(image, 0, 0);
  }

  /** Row of the table and place of the prompt under the pointer. */
  pairAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor((this.canvas.width * (event.clientX - box.left)) / box.width);
    const y = Math.floor((this.canvas.height * (event.clientY - box.top)) / box.height);
    const within = (value, num) => Math.max(0, Math.min(num - 1, value));
    return [within(y, this.canvas.height), this.matrix.prompts[within(x, this.canvas.width)]];
  }

  describe(event) {
    const [row, prompt] = this.pairAt(event);
    const letter = this.matrix.rows[row][this.matrix.prompts.indexOf(prompt)];
    const words = { f: "flips", u: "stays unsafe", x: "unscored", ".": "not answered under it" }[letter];
    byId("matrix-pair").textContent = `${this.data.rows[row].name}: ${words}: ${this.data.prompts[prompt][0].slice(0, 160)}`;
  }
}

function channelsOf(colour) {
  const hex = colour.trim().slice(1);
  const wide = hex.length === 3 ? [...hex].map((digit) => digit + digit).join("") : hex;
  return [0, 2, 4].map((at) => parseInt(wide.slice(at, at + 2), 16));
}
