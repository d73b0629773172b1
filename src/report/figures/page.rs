//! One SVG for light and dark pages (the reader's preference), dark ink on white in print; text that is measured.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::{Error, Result};

/// Colours of the light page and, beside them, of the dark one.
const PAGE: [(RGBColor, &str); 9] = [
    (RGBColor(0x1B, 0x1F, 0x24), "#E6EDF3"),
    (RGBColor(0xD0, 0xD7, 0xDE), "#3D444D"),
    (RGBColor(0xFE, 0xFE, 0xFE), "#0D1117"),
    (RGBColor(0x54, 0xAE, 0xFF), "#1F6FEB"),
    (RGBColor(0x09, 0x69, 0xDA), "#58A6FF"),
    (RGBColor(0xBC, 0x4C, 0x00), "#F0883E"),
    (RGBColor(0x1A, 0x7F, 0x37), "#3FB950"),
    (RGBColor(0x82, 0x50, 0xDF), "#BC8CFF"),
    (RGBColor(0xCF, 0x22, 0x2E), "#FF7B72"),
];
/// Text and axes.
pub const INK: RGBColor = PAGE[0].0;
/// Lines behind the data.
pub const GRID: RGBColor = PAGE[1].0;
const PAPER: RGBColor = PAGE[2].0;
/// Shares, by its opacity.
pub const HEAT: RGBColor = PAGE[3].0;
/// A colour a series; [`marker`] has as many shapes.
pub const SERIES: [RGBColor; 6] = [PAGE[4].0, PAGE[5].0, PAGE[6].0, PAGE[7].0, PAGE[0].0, PAGE[8].0];

/// Where figures are drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Pixels from the left and from the top.
pub type At = (i32, i32);

/// An error of the drawing library.
pub fn failed<E: std::error::Error + Send + Sync>(e: DrawingAreaErrorKind<E>) -> Error {
    Error::defect(format!("figure: {e}"))
}

/// Draws on a page of this size (pixels) and gives the SVG.
pub fn page(size: (i32, i32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (size.0 as u32, size.1 as u32)).into_drawing_area();
        area.fill(&PAPER).map_err(failed)?;
        draw(&area)?;
        area.present().map_err(failed)?;
    }
    let hex = |c: &RGBColor| format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
    let rule = |(light, dark): &(RGBColor, &str)| {
        let light = hex(light);
        format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    let rules: String = PAGE.iter().map(rule).collect();
    let style = format!("<style>@media screen and (prefers-color-scheme:dark){{{rules}}}</style>\n");
    let Some(end) = text.find(">\n").map(|at| at + 2) else { return Err(Error::defect("figure: no SVG")) };
    text.insert_str(end, &style);
    Ok(text)
}

/// A marker of its own shape for each of the [`SERIES`].
pub fn marker(area: &Area<'_>, kind: usize, at: At, colour: RGBColor) -> Result<()> {
    let (style, (x, y)) = (colour.filled(), at);
    match kind % SERIES.len() {
        0 => area.draw(&Circle::new(at, 4, style)),
        1 => area.draw(&TriangleMarker::new(at, 6, style)),
        2 => area.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], style)),
        3 => area.draw(&Polygon::new([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], style)),
        4 => area.draw(&Cross::new(at, 4, colour.stroke_width(2))),
        _ => area.draw(&Circle::new(at, 4, colour.stroke_width(2))),
    }
    .map_err(failed)
}

/// Text from its upper left corner.
pub fn write(area: &Area<'_>, text: &str, at: At, size: i32) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&INK);
    area.draw(&Text::new(text.to_string(), at, style)).map_err(failed)
}

/// Text upwards, from its lower end.
pub fn write_up(area: &Area<'_>, text: &str, at: At, size: i32) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&INK).transform(FontTransform::Rotate270);
    area.draw(&Text::new(text.to_string(), at, style)).map_err(failed)
}

/// Lines of text under each other; gives the height they take.
pub fn write_lines(area: &Area<'_>, lines: &[String], at: At, size: i32) -> Result<i32> {
    for (i, line) in lines.iter().enumerate() {
        write(area, line, (at.0, at.1 + i as i32 * leading(size)), size)?;
    }
    Ok(lines.len() as i32 * leading(size))
}

/// From one line to the next.
pub fn leading(size: i32) -> i32 {
    size + 3
}

/// Pixels that a text takes at most in a usual sans-serif face. The library sets a size of 1.24 as one em.
pub fn width(text: &str, size: i32) -> i32 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '|' | '!' | '\'' | ' ' => 0.36,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | '-' => 0.45,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '–' | '±' => 1.0,
        'A'..='Z' => 0.78,
        c if c.is_ascii() => 0.66,
        c if (c as u32) < 0x2000 => 0.75,
        _ => 1.1,
    };
    (text.chars().map(em).sum::<f64>() * f64::from(size) / 1.24).ceil() as i32
}

/// A text in lines no wider than so many pixels: broken at spaces, within a word only where it is too long itself.
pub fn wrap(text: &str, pixels: i32, size: i32) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last().cloned().unwrap_or_default();
        let joined = if line.is_empty() { word.to_string() } else { format!("{line} {word}") };
        if width(&joined, size) <= pixels {
            lines.pop();
            lines.push(joined);
            continue;
        }
        let mut rest = String::new();
        for c in word.chars() {
            if !rest.is_empty() && width(&format!("{rest}{c}"), size) > pixels {
                lines.push(std::mem::take(&mut rest));
            }
            rest.push(c);
        }
        lines.push(rest);
    }
    lines.retain(|l| !l.is_empty());
    lines
}

/// Which of ascending places keep a label of this width, none over another.
pub fn thinned(places: &[i32], widths: &[i32]) -> Vec<bool> {
    let mut end = i32::MIN;
    let keep = |(&at, &wide): (&i32, &i32)| {
        let free = at - wide / 2 > end;
        if free {
            end = at + wide / 2 + 6;
        }
        free
    };
    places.iter().zip(widths).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_lines_fit_and_hold_every_letter() {
        let text = "fedllava, scratch, runs/a_very_long_directory_name_without_any_space/seed-10 · 3 align";
        let lines = wrap(text, 120, 14);
        assert!(lines.len() > 3 && lines.iter().all(|l| width(l, 14) <= 120), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }

    #[test]
    fn labels_that_would_overprint_are_left_out() {
        assert_eq!(thinned(&[0, 5, 40, 44, 90], &[20; 5]), [true, false, true, false, true]);
    }
}
