"""Boxes to draw in: a canvas each, which sends its picture as soon as a stroke ends."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from maml.demo.drawing import as_character
from maml.errors import UserError

BOX, BRUSH = 220, 9  # pixels
START = "data:image/png;base64,"
LARGEST = 200_000  # characters of a picture that is sent

STYLE = f"""
canvas.pad {{ width: {BOX}px; height: {BOX}px; border: 1px solid #999; border-radius: 6px; background: white;
  touch-action: none; cursor: crosshair; }}
.behind {{ display: none !important; }}
"""
# The picture goes into a text box that is not seen, and Gradio hears of it as of typed text.
SCRIPT = f"""<script>
(() => {{
  let open = null;
  const at = (pad, e) => {{ const r = pad.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; }};
  const send = (pad, text) => {{
    const box = document.querySelector("#" + pad.id + "_png textarea, #" + pad.id + "_png input");
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), "value").set.call(box, text);
    box.dispatchEvent(new Event("input", {{ bubbles: true }}));
  }};
  window.wipe = (pad) => {{ pad.getContext("2d").clearRect(0, 0, {BOX}, {BOX}); send(pad, ""); }};
  document.addEventListener("pointerdown", (e) => {{
    if (!e.target.matches("canvas.pad")) return;
    open = e.target;
    open.setPointerCapture(e.pointerId);
    const pen = open.getContext("2d");
    Object.assign(pen, {{ lineWidth: {BRUSH}, lineCap: "round", lineJoin: "round" }});
    pen.beginPath();
    pen.moveTo(...at(open, e));
    pen.lineTo(...at(open, e));
    pen.stroke();
  }});
  document.addEventListener("pointermove", (e) => {{
    if (!open) return;
    const pen = open.getContext("2d");
    pen.lineTo(...at(open, e));
    pen.stroke();
  }});
  document.addEventListener("pointerup", () => {{ if (open) send(open, open.toDataURL()); open = null; }});
  document.addEventListener("click", (e) => {{
    if (e.target.matches(".wipe")) window.wipe(document.getElementById(e.target.dataset.pad));
  }});
}})();
</script>"""
WIPE_ALL = "() => document.querySelectorAll('canvas.pad').forEach(window.wipe)"


def pad(gr: Any, name: str, label: str) -> Any:
    """A box with a name; what is returned holds its picture as text, see `character_of`."""
    gr.HTML(
        f'<div>{label} · <a class="wipe" data-pad="{name}" style="cursor:pointer">clear</a></div>'
        f'<canvas id="{name}" class="pad" width="{BOX}" height="{BOX}" aria-label="{label}"></canvas>'
    )
    return gr.Textbox(elem_id=f"{name}_png", elem_classes="behind", container=False)


def character_of(text: str | None) -> np.ndarray | None:
    """The drawing that a box sent, as the network sees it; None if the box is empty, or it sent something else."""
    if not text or not text.startswith(START) or len(text) > LARGEST:
        return None
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(text.removeprefix(START), validate=True)), formats=["PNG"]
        ) as image:
            return as_character(image.convert("RGBA")) if image.size == (BOX, BOX) else None
    except (OSError, ValueError, SyntaxError, UserError, Image.DecompressionBombError):
        return None
