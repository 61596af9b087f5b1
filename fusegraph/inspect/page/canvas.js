"use strict";
// A drawing that can be panned, zoomed and walked through with the arrow keys.
const READABLE = 0.74; // the scale below which labels cannot be read
FG.Canvas = class {
  constructor(holder, label) {
    this.holder = holder;
    this.layer = FG.svg("g");
    const arrow = FG.svg(
      "marker",
      {
        id: `arrow-${holder.id}`,
        viewBox: "0 0 8 8",
        refX: 7,
        refY: 4,
        markerWidth: 7,
        markerHeight: 7,
        orient: "auto",
        markerUnits: "userSpaceOnUse",
      },
      FG.svg("path", { d: "M0 0.8L8 4L0 7.2z" }),
    );
    this.svg = FG.svg(
      "svg",
      { role: "group", tabindex: 0, "aria-label": `${label}. Arrow keys go from node to node, Enter selects.` },
      FG.svg("defs", {}, arrow),
      this.layer,
    );
    holder.append(this.svg);
    this.view = { x: 0, y: 0, k: 1 };
    this.boxes = [];
    this.listen();
  }

  get arrow() {
    return `url(#arrow-${this.holder.id})`;
  }

  // boxes: {key, x, y, w, h, element}, in reading order.
  show(elements, boxes, width, height) {
    this.layer.replaceChildren(...elements);
    this.boxes = boxes;
    [this.width, this.height] = [width, height];
    for (const box of boxes) {
      box.element.setAttribute("tabindex", "-1");
      box.element.addEventListener("keydown", (event) => this.key(event, box));
      box.element.addEventListener("focus", () => {
        this.current = box;
        this.keepVisible(box);
      });
    }
  }

  apply() {
    this.layer.setAttribute("transform", `translate(${this.view.x} ${this.view.y}) scale(${this.view.k})`);
  }

  // Everything, if it can be read at that size; else as much as can be read, from the first box on.
  fit(all = false) {
    const [w, h] = [this.holder.clientWidth || 500, this.holder.clientHeight || 400];
    if (!this.width) return;
    const whole = Math.min(w / this.width, h / this.height, 1.15) * 0.97;
    const k = all ? whole : Math.max(whole, Math.min(0.95, Math.max((w / this.width) * 0.97, READABLE)));
    const first = this.boxes.reduce((a, b) => (a && (a.y < b.y || b.item?.open) ? a : b), null);
    const centre =
      this.width * k <= w
        ? this.width / 2
        : Math.min(Math.max(first.x + first.w / 2, w / 2 / k - 10), this.width - w / 2 / k + 10);
    this.view = { k, x: w / 2 - centre * k, y: this.height * k <= h ? (h - this.height * k) / 2 : 6 };
    this.apply();
  }

  zoom(factor, x = this.holder.clientWidth / 2, y = this.holder.clientHeight / 2) {
    const k = Math.min(4, Math.max(0.04, this.view.k * factor));
    this.view.x = x - ((x - this.view.x) * k) / this.view.k;
    this.view.y = y - ((y - this.view.y) * k) / this.view.k;
    this.view.k = k;
    this.apply();
  }

  // Pan (and enlarge what would be too small to read) so that boxes can be seen.
  reveal(boxes) {
    if (!boxes.length) return;
    const [w, h] = [this.holder.clientWidth, this.holder.clientHeight];
    const left = Math.min(...boxes.map((b) => b.x)),
      right = Math.max(...boxes.map((b) => b.x + b.w));
    const top = Math.min(...boxes.map((b) => b.y)),
      bottom = Math.max(...boxes.map((b) => b.y + b.h));
    const { x, y, k } = this.view;
    if (left * k + x >= 0 && right * k + x <= w && top * k + y >= 0 && bottom * k + y <= h && k > 0.35) return;
    const fits = Math.min((w - 40) / (right - left), (h - 40) / (bottom - top));
    const next = Math.min(Math.max(fits, 0.6), Math.max(k, 0.8));
    const focus =
      fits >= next
        ? { x: (left + right) / 2, y: (top + bottom) / 2 }
        : { x: boxes[0].x + boxes[0].w / 2, y: boxes[0].y + boxes[0].h / 2 };
    this.view = { k: next, x: w / 2 - focus.x * next, y: h / 2 - focus.y * next };
    this.apply();
  }

  keepVisible(box) {
    const { x, y, k } = this.view;
    const [cx, cy] = [(box.x + box.w / 2) * k + x, (box.y + box.h / 2) * k + y];
    const [w, h] = [this.holder.clientWidth, this.holder.clientHeight];
    if (cx < 30) this.view.x += 30 - cx;
    else if (cx > w - 30) this.view.x -= cx - w + 30;
    if (cy < 30) this.view.y += 30 - cy;
    else if (cy > h - 30) this.view.y -= cy - h + 30;
    this.apply();
  }

  listen() {
    this.svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const box = this.svg.getBoundingClientRect();
        if (event.shiftKey) {
          this.view.x -= event.deltaY || event.deltaX;
          this.apply();
        } else this.zoom(Math.exp(-event.deltaY * 0.0016), event.clientX - box.left, event.clientY - box.top);
      },
      { passive: false },
    );
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      const start = {
        x: event.clientX - this.view.x,
        y: event.clientY - this.view.y,
        fromX: event.clientX,
        fromY: event.clientY,
      };
      this.moved = false;
      const move = (e) => {
        if (!this.moved && Math.hypot(e.clientX - start.fromX, e.clientY - start.fromY) < 4) return;
        this.moved = true;
        this.svg.classList.add("dragging");
        this.view.x = e.clientX - start.x;
        this.view.y = e.clientY - start.y;
        this.apply();
      };
      const stop = () => {
        removeEventListener("pointermove", move);
        removeEventListener("pointerup", stop);
        this.svg.classList.remove("dragging");
      };
      addEventListener("pointermove", move);
      addEventListener("pointerup", stop);
    });
    // A click that ends a drag selects nothing; one on the empty ground takes the selection away.
    this.svg.addEventListener(
      "click",
      (event) => {
        if (this.moved) {
          event.stopPropagation();
          this.moved = false;
        } else if (event.target === this.svg) FG.select(null);
      },
      true,
    );
    this.svg.addEventListener("keydown", (event) => {
      const zoom = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
      if (zoom) this.zoom(zoom);
      else if (event.key === "0") this.fit(true);
      else if (event.target === this.svg && event.key.startsWith("Arrow") && this.boxes.length) {
        event.preventDefault();
        (this.current && this.boxes.includes(this.current) ? this.current : this.boxes[0]).element.focus();
      }
    });
  }

  key(event, box) {
    const way = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    this.neighbour(box, way)?.element.focus();
  }

  // The nearest box in a direction; leaving the direction counts double.
  neighbour(box, [dx, dy]) {
    const centre = (b) => (b.item?.group && b.item.open ? [b.x + b.w / 2, b.y + 8] : [b.x + b.w / 2, b.y + b.h / 2]);
    const [x, y] = centre(box);
    let best = null;
    let least = Infinity;
    for (const other of this.boxes) {
      const [ox, oy] = centre(other);
      const along = (ox - x) * dx + (oy - y) * dy;
      const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (along > 2 && along + 2 * aside < least && (dy !== 0 || aside < 40)) {
        best = other;
        least = along + 2 * aside;
      }
    }
    return best;
  }
};
