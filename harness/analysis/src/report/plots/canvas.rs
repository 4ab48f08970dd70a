//! The common ground of all plots: size, ground, text and legend.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// A drawing area that becomes SVG text.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) const WIDTH: u32 = 880;
pub(super) const INK: RGBColor = RGBColor(31, 35, 40);
pub(super) const FAINT: RGBColor = RGBColor(220, 224, 229);
/// Font sizes in the unit of plotters, which divides by 1.24 to get pixels.
pub(super) const TITLE: i32 = 21;
pub(super) const TEXT: i32 = 16;

/// Height of the title's line, and of a line of the legend.
pub(super) const TITLE_HEIGHT: u32 = 40;
const LEGEND_HEIGHT: u32 = 24;

/// Why drawing cannot fail.
pub(super) const SOUND: &str = "a string takes every element, and ranges are finite";

/// Mean width of a character of size [`TEXT`], pixels: a generous guess, because no font is at hand.
const CHARACTER: f64 = 7.4;

/// Width of a text of size [`TEXT`], pixels.
pub(super) fn text_width(text: &str) -> u32 {
    (text.chars().count() as f64 * CHARACTER).ceil() as u32
}

/// The text, or as much of its end as this many pixels hold: ids of cases differ there.
pub(super) fn fit(text: &str, pixels: u32) -> String {
    let excess = text_width(text).saturating_sub(pixels);
    if excess == 0 {
        return text.into();
    }
    let cut = (f64::from(excess) / CHARACTER).ceil() as usize + 1;
    format!("…{}", text.chars().skip(cut).collect::<String>())
}

/// Draws a plot of this height and gives it a white, rounded ground and a title for readers that cannot see it.
pub(super) fn svg(height: u32, title: &str, draw: impl FnOnce(&Area<'_>)) -> String {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        write(
            &root,
            &fit(title, (WIDTH - 32) * TEXT as u32 / TITLE as u32),
            (16, 14),
            TITLE,
            HPos::Left,
            VPos::Top,
        );
        draw(&root);
        root.present().expect(SOUND);
    }
    let escaped = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let ground = format!(
        " role=\"img\">\n<title>{escaped}</title>\n<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"10\" fill=\"#FFFFFF\" stroke=\"#D0D7DE\"/>",
        WIDTH - 1,
        height - 1
    );
    text.replacen('>', &ground, 1)
}

/// Writes a line of text at a point in pixels.
pub(super) fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, h: HPos, v: VPos) {
    let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(h, v));
    area.draw(&Text::new(text.to_string(), at, style)).expect(SOUND);
}

/// An entry of a legend.
#[derive(Clone, Debug)]
pub(super) enum Key {
    /// A filled area.
    Area(String, RGBColor),
    /// A dot for one trial.
    Dot(String),
    /// An interval.
    Whisker(String),
    /// A mark across a bar.
    Mark(String),
    /// A line with its dash pattern: pixels drawn and left out, or unbroken.
    Line(String, RGBColor, Option<(i32, i32)>),
}

impl Key {
    fn text(&self) -> &str {
        match self {
            Key::Area(t, _) | Key::Dot(t) | Key::Whisker(t) | Key::Mark(t) | Key::Line(t, ..) => t,
        }
    }

    fn width(&self) -> u32 {
        34 + text_width(self.text()) + 16
    }

    fn draw(&self, area: &Area<'_>, (x, y): (i32, i32)) {
        match self {
            Key::Area(_, colour) => {
                let corners = [(x + 8, y - 7), (x + 28, y + 7)];
                area.draw(&Rectangle::new(corners, colour.filled())).expect(SOUND);
            }
            Key::Dot(_) => dot(area, (x + 18, y)),
            Key::Whisker(_) => whisker(area, (x + 4, x + 28), y),
            Key::Mark(_) => mark(area, (x + 18, y), 9),
            Key::Line(_, colour, dash) => {
                let points = [(x, y), (x + 28, y)];
                let style = colour.stroke_width(3);
                match dash {
                    None => area.draw(&PathElement::new(points, style)),
                    Some((on, off)) => {
                        area.draw(&plotters::element::DashedPathElement::new(points, *on, *off, style))
                    }
                }
                .expect(SOUND);
            }
        }
        write(area, self.text(), (x + 34, y), TEXT, HPos::Left, VPos::Center);
    }
}

/// The place of every key: line and x.
fn lines(keys: &[Key]) -> Vec<(u32, u32)> {
    let (mut line, mut x) = (0, 16);
    keys.iter()
        .map(|k| {
            if x > 16 && x + k.width() > WIDTH - 8 {
                (line, x) = (line + 1, 16);
            }
            let place = (line, x);
            x += k.width();
            place
        })
        .collect()
}

/// Pixels that a legend takes.
pub(super) fn legend_height(keys: &[Key]) -> u32 {
    lines(keys).last().map_or(0, |(line, _)| (line + 1) * LEGEND_HEIGHT)
}

/// Draws a legend with its upper edge at `top`.
pub(super) fn legend(area: &Area<'_>, keys: &[Key], top: u32) {
    for (key, (line, x)) in keys.iter().zip(lines(keys)) {
        key.draw(area, (x as i32, (top + line * LEGEND_HEIGHT + LEGEND_HEIGHT / 2) as i32));
    }
}

pub(super) fn dot(area: &Area<'_>, at: (i32, i32)) {
    area.draw(&Circle::new(at, 3, WHITE.filled())).expect(SOUND);
    area.draw(&Circle::new(at, 3, INK.stroke_width(1))).expect(SOUND);
}

pub(super) fn whisker(area: &Area<'_>, (from, to): (i32, i32), y: i32) {
    let style = INK.stroke_width(2);
    for line in [[(from, y), (to, y)], [(from, y - 5), (from, y + 5)], [(to, y - 5), (to, y + 5)]] {
        area.draw(&PathElement::new(line, style)).expect(SOUND);
    }
}

pub(super) fn mark(area: &Area<'_>, (x, y): (i32, i32), half: i32) {
    area.draw(&PathElement::new([(x, y - half), (x, y + half)], WHITE.stroke_width(6))).expect(SOUND);
    area.draw(&PathElement::new([(x, y - half), (x, y + half)], INK.stroke_width(3))).expect(SOUND);
}
