// The picture, and what is drawn on it with a pointer. One movement is one event, so that drawing never waits for the server.
export default {
  template: `
    <div class="vos-board" ref="board" :style="{cursor: enabled ? 'crosshair' : 'default', aspectRatio: width + ' / ' + height,
         maxWidth: 'calc((100vh - 285px) * ' + width / height + ')'}"
         @pointerdown="down" @pointermove="move" @pointerup="up" @pointercancel="cancel" @pointerleave="hover = null; paint()"
         @contextmenu.prevent>
      <img :src="src" draggable="false" alt="" @load="$emit('shown')">
      <canvas ref="canvas"></canvas>
    </div>`,
  props: {
    src: String,
    width: Number,
    height: Number,
    tool: String,
    size: Number,
    colour: String,
    enabled: Boolean,
  },
  emits: ["stroke", "shown"],
  data: () => ({points: null, hover: null}),
  mounted() {
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.$refs.board);
  },
  unmounted() {
    this.observer.disconnect();
  },
  methods: {
    place(event) {
      const box = this.$refs.board.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    },
    down(event) {
      if (!this.enabled || event.button !== 0) return;
      this.$refs.board.setPointerCapture(event.pointerId);
      this.points = [this.place(event)];
      this.paint();
    },
    move(event) {
      this.hover = this.place(event);
      if (this.points) this.points.push(this.hover);
      this.paint();
    },
    up(event) {
      if (!this.points) return;
      this.points.push(this.place(event));
      let points = this.points;
      if (this.tool === "box") points = [points[0], points[points.length - 1]];
      this.points = null;
      this.paint();
      this.$emit("stroke", {tool: this.tool, size: this.size, points});
    },
    cancel() {
      this.points = null;
      this.paint();
    },
    paint() {
      const canvas = this.$refs.canvas;
      if (!canvas) return;
      const box = this.$refs.board.getBoundingClientRect();
      const ratio = window.devicePixelRatio || 1;
      canvas.width = box.width * ratio;
      canvas.height = box.height * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const at = ([x, y]) => [x * box.width, y * box.height];
      const thick = this.size * Math.min(box.width, box.height);
      const colours = {inside: "#00e676", outside: "#ff1744", eraser: "#ffffff"};
      const colour = colours[this.tool] || this.colour;
      context.lineCap = context.lineJoin = "round";
      if (this.enabled && this.hover && this.tool !== "box") {
        const [x, y] = at(this.hover);
        for (const [style, radius] of [["#000", thick / 2 + 1], ["#fff", thick / 2]]) {
          context.strokeStyle = style;
          context.beginPath();
          context.arc(x, y, Math.max(1, radius), 0, 2 * Math.PI);
          context.stroke();
        }
      }
      if (this.enabled && this.hover && this.tool === "box" && !this.points) {
        const [x, y] = at(this.hover);
        context.strokeStyle = "rgba(255, 255, 255, 0.6)";
        context.beginPath();
        context.moveTo(x, 0);
        context.lineTo(x, box.height);
        context.moveTo(0, y);
        context.lineTo(box.width, y);
        context.stroke();
      }
      if (!this.points) return;
      if (this.tool === "box") {
        const [left, top] = at(this.points[0]);
        const [right, bottom] = at(this.points[this.points.length - 1]);
        for (const [style, width] of [["#000", 4], [colour, 2]]) {
          context.strokeStyle = style;
          context.lineWidth = width;
          context.strokeRect(left, top, right - left, bottom - top);
        }
      } else {
        context.globalAlpha = 0.7;
        context.strokeStyle = context.fillStyle = colour;
        context.lineWidth = Math.max(1, thick);
        context.beginPath();
        this.points.forEach((point, number) => context[number ? "lineTo" : "moveTo"](...at(point)));
        context.stroke();
      }
    },
  },
};
