"""The page itself, the only place that gradio is imported in. Raises ImportError where it is not installed."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

# Before gradio is imported: it would ask its makers for its newest version and tell them of this start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from trocr_jax.demo import cards
from trocr_jax.demo.lines import EMBEDDED, EXAMPLES, MAX_IMAGES, Choices, Reader, cropped_to_ink, draw_line
from trocr_jax.sources import IMAGE_SUFFIXES

MAX_UPLOAD = "10mb"  # a file
MAX_WAITING = 50  # visitors
UPLOADS_LIVE, UPLOADS_SWEPT = 3600, 600  # seconds
CANVAS = (640, 240)  # pixels; wider ones are a thin strip on a phone
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
ABOUT = "# trocr-jax\nReads images of single text lines. Cut one line out of a page, with little room around it."
PRINTED = " The embedded model is small and knows short printed lines; handwriting takes another model (`--model`)."

Images = list[tuple[str, Any]]


def _path_of_upload(payload: Any) -> str | None:
    return None if payload is None else payload.path


def launch(reader: Reader, *, host: str, port: int | None) -> gr.Blocks:
    """The running page; it serves from threads of its own. Raises OSError where the port is taken.

    What visitors upload lies in a folder that only this user can look into, and goes with the process.
    """
    folder = tempfile.TemporaryDirectory(prefix="trocr-jax-demo-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    page = build(reader, pathlib.Path(folder.name))
    page.uploads = folder  # removed when the page is
    page.queue(max_size=MAX_WAITING, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[],
        blocked_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
        theme=gr.themes.Default(**SYSTEM_FONTS),
        css=cards.STYLE,
    )
    return page


def build(reader: Reader, folder: pathlib.Path) -> gr.Blocks:
    """The page, not running; its example images are drawn into `folder`."""
    page = gr.Blocks(analytics_enabled=False, title="trocr-jax", delete_cache=(UPLOADS_SWEPT, UPLOADS_LIVE))
    with page:
        gr.Markdown(ABOUT + (PRINTED if EMBEDDED in reader.names else ""))
        with gr.Row():
            with gr.Column(min_width=300):
                sources = _sources(folder)
                choices = _choices(reader.names)
            with gr.Column(min_width=300):
                shown = gr.HTML(cards.EMPTY, padding=False, elem_id="lines")
                text = gr.Textbox(label="Text", buttons=["copy"], interactive=False, elem_id="text")
        for button, component, to_images in sources:
            # One id, so that visitors take turns whichever way they gave their images.
            button.click(
                _reading(reader, to_images),
                [component, *choices],
                [shown, text],
                concurrency_limit=1,
                concurrency_id="read",
                api_visibility="private",
            )
    return page


def _sources(folder: pathlib.Path) -> list[tuple[gr.Button, Any, Callable[[Any], Images]]]:
    """The tabs: (the button, the component with images, what makes named images of its value) of each."""
    found: list[tuple[gr.Button, Any, Callable[[Any], Images]]] = []
    with gr.Tab("One image"):
        one = gr.Image(
            type="filepath", sources=["upload", "clipboard", "webcam"], label="Drop or paste a line", height=200,
            buttons=[], elem_id="one",
        )  # fmt: skip
        # The file is passed on unopened, so that a damaged one gets a message rather than gradio's error. A subclass
        # would make gradio write a stub file beside this module.
        one.preprocess = _path_of_upload
        gr.Examples(_draw_examples(folder), one, label="Examples", cache_examples=False, api_visibility="private")
        found.append((gr.Button("Read", variant="primary", elem_id="read-one"), one, _from_path))
    with gr.Tab("Several"):
        several = gr.File(
            file_count="multiple", file_types=sorted(IMAGE_SUFFIXES), label=f"At most {MAX_IMAGES} images", height=200,
            elem_id="several",
        )  # fmt: skip
        found.append((gr.Button("Read", variant="primary", elem_id="read-several"), several, _from_paths))
    with gr.Tab("Draw"):
        drawing = gr.Sketchpad(
            type="pil", canvas_size=CANVAS, fixed_canvas=True, layers=False, transforms=(), buttons=[], height=300,
            brush=gr.Brush(default_size=6, colors=["#000000"], color_mode="fixed"), label="Write a line",
            elem_id="drawing",
        )  # fmt: skip
        found.append((gr.Button("Read", variant="primary", elem_id="read-drawing"), drawing, _from_drawing))
    for _, component, _ in found:
        _refuse_addresses(component)
    return found


def _refuse_addresses(component: Any) -> None:
    """Gradio would download, of any size, what a request names in the place of an upload."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("images are uploaded here, not downloaded")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload


def _choices(names: Sequence[str]) -> list[Any]:
    """The components of `Choices`, in the order of its fields."""
    with gr.Accordion("Choices", open=False, elem_id="choices"):
        return [
            gr.Dropdown(list(names), value=names[0], label="Model", elem_id="model"),
            gr.Radio([1, 2, 4, 8], value=1, label="Beams", info="more find better texts, slower", elem_id="beams"),
            gr.Textbox(
                label="Pattern", info="a regular expression of the whole text: [0-9]{2}\\.[0-9]{2}", elem_id="pattern"
            ),
            gr.Textbox(label="Allowed characters", info="no others: 0123456789.", elem_id="allowed"),
            gr.Textbox(label="Lexicon", info="the text is one of these, one a line", lines=3, elem_id="lexicon"),
        ]


def _draw_examples(folder: pathlib.Path) -> list[list[str]]:
    paths = [folder / f"{text}.png" for text in EXAMPLES]
    for text, path in zip(EXAMPLES, paths, strict=True):
        draw_line(text).save(path)
    return [[str(path)] for path in paths]


def _from_path(path: str | None) -> Images:
    return [] if path is None else [(pathlib.Path(path).name, path)]


def _from_paths(paths: Sequence[str] | None) -> Images:
    return [(pathlib.Path(path).name, str(path)) for path in paths or ()]


def _from_drawing(value: dict[str, Any] | None) -> Images:
    image = None if value is None else value["composite"]
    drawn = None if image is None else cropped_to_ink(image)
    return [] if drawn is None else [("drawing", drawn)]


def _reading(reader: Reader, to_images: Callable[[Any], Images]) -> Callable[..., tuple[str, str]]:
    """What a button does: (the value of a tab, the choices) -> (HTML, text)."""

    def read(value: Any, *choices: Any) -> tuple[str, str]:
        images = to_images(value)
        if not images:
            return cards.message("There is no image yet: drop, paste or draw one, or take an example."), ""
        chosen: list[Any] = ["" if choice is None else choice for choice in choices]
        try:
            lines = reader.read(images, Choices(*chosen))
        except (ValueError, MemoryError) as error:
            return cards.message(str(error)), ""
        return cards.to_html(lines), cards.to_text(lines)

    return read
