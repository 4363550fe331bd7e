// All frames of the video in a row: which are found, which ask for a look, where masks were drawn. Clicking or dragging goes to a frame.
export default {
  template: `
    <div class="vos-timeline" ref="bar" role="slider" tabindex="0" aria-label="Frame" :aria-valuemin="0"
         :aria-valuemax="rows.length - 1" :aria-valuenow="index" @pointerdown="down" @pointermove="move" @pointerup="held = false">
      <canvas ref="canvas"></canvas>
    </div>`,
  props: {rows: Object, index: Number},
  emits: ["pick"],
  data: () => ({held: false, last: null}),
  mounted() {
    this.observer = new ResizeObserver(() => this.paint());
    this.observer.observe(this.$refs.bar);
  },
  unmounted() {
    this.observer.disconnect();
  },
  watch: {
    rows: {deep: true, handler() { this.paint(); }},
    index() { this.paint(); },
  },
  methods: {
    down(event) {
      this.$refs.bar.setPointerCapture(event.pointerId);
      this.held = true;
      this.last = null;
      this.move(event);
    },
    move(event) {
      if (!this.held) return;
      const box = this.$refs.bar.getBoundingClientRect();
      const share = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
      const index = Math.floor(share * this.rows.length);
      if (index !== this.last) this.$emit("pick", index);
      this.last = index;
    },
    paint() {
      const canvas = this.$refs.canvas;
      if (!canvas || !this.rows.length) return;
      const box = this.$refs.bar.getBoundingClientRect();
      const ratio = window.devicePixelRatio || 1;
      canvas.width = box.width * ratio;
      canvas.height = box.height * ratio;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      const each = box.width / this.rows.length;
      const bar = (spans, colour, top, height) => {
        context.fillStyle = colour;
        for (const [first, last] of spans) context.fillRect(first * each, top, Math.max(2, (last - first + 1) * each), height);
      };
      bar([[0, this.rows.length - 1]], "#3a4150", 16, 14);
      bar(this.rows.fresh, "#2e9e6b", 16, 14);
      bar(this.rows.old, "#75809a", 16, 14);
      bar(this.rows.flagged, "#ffb300", 30, 8);
      context.fillStyle = "#ff5fd2";
      for (const index of this.rows.cuts) context.fillRect(index * each - 1, 12, 2, 30);
      const stack = {};
      for (const [index, colour] of this.rows.marks) {
        const x = (index + 0.5) * each + 6 * (stack[index] || 0);
        const y = 8;
        stack[index] = (stack[index] || 0) + 1;
        context.fillStyle = colour;
        context.strokeStyle = "#000";
        context.beginPath();
        context.moveTo(x, y - 6);
        context.lineTo(x + 6, y);
        context.lineTo(x, y + 6);
        context.lineTo(x - 6, y);
        context.closePath();
        context.fill();
        context.stroke();
      }
      context.fillStyle = "#fff";
      context.fillRect((this.index + 0.5) * each - 1.5, 12, 3, 30);
    },
  },
};
