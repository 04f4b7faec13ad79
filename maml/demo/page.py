"""The page: symbols to draw, a curve to click, images of your own. Gradio shows it, on this machine alone."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maml.demo.classify import curve, probabilities
from maml.demo.pads import BOX, SCRIPT, START, STYLE, WIPE_ALL, character_of, pad
from maml.errors import UserError
from maml.learner import Learner, load

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported

PRETRAINED = Path(__file__).resolve().parents[2] / "pretrained"
CHARACTERS, SINUSOID, PRETRAINING = "omniglot_5way_1shot", "sinusoid_10shot", "sinusoid_pretrained"
STEPS = 5
PADS = 5
CURVE_STEPS = (0, 1, 5, 10)
SHADES = "#0072B2"
# The picture of the curve in pixels, and its axes.
WIDTH, HEIGHT, X, Y = 900, 450, (-5.0, 5.0), (-6.0, 6.0)
LEFT, RIGHT, TOP, BOTTOM = 0.06, 0.98, 0.95, 0.1  # of the axes, in the picture


def demo(learner: Learner | None = None, **launch: Any) -> Any:
    """Starts the page and returns Gradio's Blocks; `launch` goes to its `launch`.

    Args:
        learner: for images of your own; None: those two tabs alone for which there are runs in pretrained/.

    Raises:
        UserError: Gradio is not installed, or there is nothing to show.
    """
    page = built(learner)
    here = {"server_name": "127.0.0.1", "share": False, "quiet": True, "prevent_thread_lock": True}
    page.launch(**here | {"head": SCRIPT, "css": STYLE} | launch)
    print(f"Open {page.local_url} (Ctrl-C ends it)", flush=True)
    return page


def built(learner: Learner | None = None) -> Any:
    """The page, not yet started."""
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install -r requirements-demo.txt (or make demo)") from error
    found = {name: folder for name in (CHARACTERS, SINUSOID, PRETRAINING) if (folder := PRETRAINED / name).is_dir()}
    if not found and learner is None:
        raise UserError(f"{PRETRAINED}: there are no trained runs to show; train one, and load(logdir).demo()")
    with gr.Blocks(title="Few-shot learning by MAML", analytics_enabled=False) as page:
        gr.Markdown(
            "# Learning from a few examples\nModel-agnostic meta-learning: the network has never seen your task."
        )
        if CHARACTERS in found:
            with gr.Tab("Draw symbols"):
                _draw_tab(gr, load(found[CHARACTERS], bn_mode="support"))
        if SINUSOID in found:
            with gr.Tab("Click a curve"):
                _curve_tab(gr, {name: load(found[name]) for name in (SINUSOID, PRETRAINING) if name in found})
        if learner is not None and learner.config.classification:
            with gr.Tab("Your images"):
                _images_tab(gr, learner)
    return page


def _draw_tab(gr: Any, learner: Learner) -> None:
    gr.Markdown(
        f"Draw 2 to {PADS} symbols, one a box, and add them; as often as you like, each time a little differently. "
        "Then draw one of them again below: the table shows what the network takes it for, before it has seen your "
        "symbols and after each gradient step on them."
    )
    examples = gr.State([])
    with gr.Row():
        drawn = []
        for number in range(PADS):
            with gr.Column(min_width=BOX + 10):
                drawn.append(pad(gr, f"pad{number + 1}", f"symbol {number + 1}"))
    with gr.Row():
        add, clear = gr.Button("Add these examples", variant="primary", elem_id="add"), gr.Button("Start over")
    seen = gr.HTML(elem_id="seen")
    with gr.Row():
        with gr.Column(min_width=BOX + 10, scale=1):
            query = pad(gr, "query", "which one is this?")
        with gr.Column(scale=4):
            table = gr.HTML(elem_id="result")

    def added(known: list, *sent: str) -> tuple:
        pictures = [(number, character_of(text)) for number, text in enumerate(sent)]
        known = known + [(number, image) for number, image in pictures if image is not None]
        return known, _seen(known)

    def classified(known: list, sent: str) -> str:
        image = character_of(sent)
        if image is None or not known:
            return "<p>Add symbols, and draw one of them again.</p>"
        return _recognized(learner, known, image)

    add.click(added, [examples, *drawn], [examples, seen]).then(None, js=WIPE_ALL)
    clear.click(lambda: ([], "", ""), None, [examples, seen, table]).then(None, js=WIPE_ALL)
    query.change(classified, [examples, query], table, show_progress="hidden")


def _recognized(learner: Learner, known: list, image: np.ndarray) -> str:
    """What a drawing [28, 28] is taken for, in the page; `known` holds the examples' (number, drawing)."""
    numbers = sorted({number for number, _ in known})
    images = np.stack([each for _, each in known])[..., None]
    labels = [numbers.index(number) for number, _ in known]
    try:
        found = probabilities(learner, images, labels, image[..., None], STEPS)
    except UserError as error:
        return f"<p>{html.escape(str(error))}</p>"
    return table_of(found, [f"symbol {number + 1}" for number in numbers])


def _seen(known: list) -> str:
    """The examples as the network sees them, in the page."""
    pictures = []
    for number, image in known:
        file = io.BytesIO()
        Image.fromarray(255 - image).resize((56, 56), Image.Resampling.NEAREST).save(file, "PNG")
        source = START + base64.b64encode(file.getvalue()).decode()
        pictures.append(f'<img src="{source}" alt="symbol {number + 1}" style="display:inline; margin:2px">')
    return f"<p>What the network sees:</p>{''.join(pictures)}"


def table_of(found: np.ndarray, names: Sequence[str]) -> str:
    """Probabilities [steps + 1, classes] as a table whose cells are bars."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for step, values in enumerate(found):
        label = "before adaptation" if step == 0 else f"after step {step}"
        cells = "".join(
            f'<td style="background:linear-gradient(90deg,{SHADES}55 {100 * value:.0f}%,transparent 0)">'
            f"{'<b>' if value == values.max() else ''}{100 * value:.0f} %</td>"
            for value in values
        )
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    answer = names[int(found[-1].argmax())]
    return (
        f"<p>It is <b id='answer'>{html.escape(answer)}</b>.</p><table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    )


def _curve_tab(gr: Any, learners: dict[str, Learner]) -> None:
    gr.Markdown(
        "Click points of a curve between −5 and 5: the network that was meta-trained on sine waves bends to them in "
        "a few gradient steps; the one that was trained on all of them at once hardly moves."
    )
    points = gr.State([])
    canvas = gr.Image(
        _picture(learners, []), label="click", interactive=False, elem_id="curve", format="png", buttons=[]
    )
    again = gr.Button("Start over")

    def clicked(known: list, event: gr.SelectData) -> tuple:
        known = [*known, _place(event.index)]
        return known, _picture(learners, known)

    canvas.select(clicked, points, [points, canvas])
    again.click(lambda: ([], _picture(learners, [])), None, [points, canvas])


def _place(pixel: Sequence[int]) -> tuple[float, float]:
    """Where a click on the picture is on the axes."""
    across, up = pixel[0] / WIDTH, 1 - pixel[1] / HEIGHT
    x = X[0] + (across - LEFT) / (RIGHT - LEFT) * (X[1] - X[0])
    y = Y[0] + (up - BOTTOM) / (TOP - BOTTOM) * (Y[1] - Y[0])
    return float(np.clip(x, *X)), float(np.clip(y, *Y))


def _picture(learners: dict[str, Learner], points: list) -> np.ndarray:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
    at = np.linspace(*X, 200)
    for name, learner in learners.items():
        meta = name == SINUSOID
        title, colors = ("MAML", "Blues") if meta else ("pretrained", "Oranges")
        counts = (CURVE_STEPS if meta else CURVE_STEPS[-1:]) if points else (0,)
        x, y = zip(*points, strict=True) if points else ((0.0,), (0.0,))
        for place, (count, values) in enumerate(zip(counts, curve(learner, x, y, counts, at), strict=True)):
            shade = colormaps[colors](0.35 + 0.6 * (place + 1) / len(counts))
            axes.plot(
                at,
                values,
                color=shade,
                label=f"{title}, {count} step{'s'[: count > 1]}" if count else f"{title}, before",
            )
    if points:
        axes.plot(*zip(*points, strict=True), "k^", label="your points")
    axes.set(xlim=X, ylim=Y)
    axes.legend(loc="upper right", fontsize=8)
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def _images_tab(gr: Any, learner: Learner) -> None:
    ways = learner.ways or PADS
    gr.Markdown(f"A few images of each of {ways} classes, then others to classify.")
    with gr.Row():
        names = [gr.Textbox(f"class {n + 1}", show_label=False) for n in range(ways)]
    with gr.Row():
        files = [gr.File(file_count="multiple", file_types=["image"], label="", height=120) for _ in range(ways)]
    queries = gr.File(file_count="multiple", file_types=["image"], label="to classify")
    go, table = gr.Button("Classify", variant="primary"), gr.HTML()

    def classified(asked: list | None, *given: Any) -> str:
        classes, supports = given[:ways], given[ways:]
        try:
            paths = [(name, path) for name, each in zip(classes, supports, strict=True) for path in each or []]
            images = learner.read_images([path for _, path in paths])
            adapted = learner.adapt(images, [name for name, _ in paths])
            found = adapted.predict_proba(learner.read_images(asked or []))
        except UserError as error:
            return f"<p>{html.escape(str(error))}</p>"
        rows = [
            f"<tr><td>{html.escape(Path(path).name)}</td><td><b>{html.escape(str(adapted.classes[row.argmax()]))}</b></td>"
            f"<td>{100 * row.max():.0f} %</td></tr>"
            for path, row in zip(asked or [], found, strict=True)
        ]
        return f"<table>{''.join(rows)}</table>"

    go.click(classified, [queries, *names, *files], table)
