//! Figures as SVG: one file for light and dark pages (the reader's preference), dark ink on white in print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

use super::{Row, STAGES};
use crate::error::{Error, Result};
use crate::fsx;
use crate::run::directory::read_json;

/// Colours of the light page and, beside them, of the dark one. Series differ in marker too.
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
const INK: RGBColor = PAGE[0].0;
const GRID: RGBColor = PAGE[1].0;
const PAPER: RGBColor = PAGE[2].0;
const HEAT: RGBColor = PAGE[3].0;
const SERIES: [RGBColor; 6] = [PAGE[4].0, PAGE[5].0, PAGE[6].0, PAGE[7].0, PAGE[0].0, PAGE[8].0];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed<E: std::error::Error + Send + Sync>(e: DrawingAreaErrorKind<E>) -> Error {
    Error::defect(format!("figure: {e}"))
}

/// Draws on a page of this size (pixels) and gives the SVG.
fn page(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
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

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn marker<'m>(kind: usize, at: (i32, i32), colour: RGBColor) -> DynElement<'m, SVGBackend<'m>, (i32, i32)> {
    let style = colour.filled();
    match kind % 4 {
        0 => Circle::new(at, 4, style).into_dyn(),
        1 => TriangleMarker::new(at, 6, style).into_dyn(),
        2 => Rectangle::new([(at.0 - 4, at.1 - 4), (at.0 + 4, at.1 + 4)], style).into_dyn(),
        _ => Cross::new(at, 4, colour.stroke_width(2)).into_dyn(),
    }
}

/// A line with markers: its name, its points in data units, and its deviation at each (empty: none).
pub struct Line {
    /// In the legend.
    pub name: String,
    /// `(x, y)`.
    pub points: Vec<(f64, f64)>,
    /// Drawn as whiskers, `(points,)` or `()`.
    pub spread: Vec<f64>,
    /// Whether a line joins the points; else they stand beside those of other series.
    pub joined: bool,
}

/// What is on an axis.
pub struct Axis<'t> {
    /// Name and unit.
    pub name: &'t str,
    /// Values with a label, ascending.
    pub ticks: Vec<f64>,
    /// Whether steps of equal ratio are equally long.
    pub log: bool,
}

/// Lines over a horizontal axis, accuracy in percent upwards.
pub fn lines(title: &str, x: &Axis<'_>, y: &str, lines: &[Line]) -> Result<String> {
    let (width, height, left, top, right, bottom) = (760, 440, 70, 44, 210, 60);
    let scale = |v: f64| if x.log { v.max(1e-9).ln() } else { v };
    let (first, last) = match (x.ticks.first(), x.ticks.last()) {
        (Some(a), Some(b)) if a < b => (scale(*a), scale(*b)),
        _ => return Err(Error::input(format!("figure {title}: it needs two values of {}", x.name))),
    };
    let room = 12.0 + (width - left - right - 24) as f64;
    let px = |v: f64| left + 12 + ((scale(v) - first) / (last - first) * (room - 12.0)).round() as i32;
    let py = |v: f64| height - bottom - (v / 100.0 * (height - top - bottom) as f64).round() as i32;
    page((width as u32, height as u32), |area| {
        area.draw(&Text::new(title.to_string(), (left, 14), font(17))).map_err(failed)?;
        for tick in (0..=100).step_by(20) {
            let at = py(f64::from(tick));
            area.draw(&PathElement::new([(left, at), (width - right, at)], GRID.stroke_width(1))).map_err(failed)?;
            area.draw(&Text::new(tick.to_string(), (left - 32, at - 8), font(14))).map_err(failed)?;
        }
        for tick in &x.ticks {
            let (at, base) = (px(*tick), height - bottom);
            area.draw(&PathElement::new([(at, base), (at, base + 5)], INK.stroke_width(1))).map_err(failed)?;
            let label = plain(*tick);
            let shift = 4 * label.len() as i32;
            area.draw(&Text::new(label, (at - shift, base + 9), font(14))).map_err(failed)?;
        }
        let middle = (left + width - right) / 2 - 4 * x.name.len() as i32;
        area.draw(&Text::new(x.name.to_string(), (middle.max(left), height - 26), font(15))).map_err(failed)?;
        let sideways = font(15).transform(FontTransform::Rotate270);
        area.draw(&Text::new(y.to_string(), (12, height - bottom - 60), sideways)).map_err(failed)?;
        for (i, line) in lines.iter().enumerate() {
            one_line(area, line, i, &px, &py)?;
            let at = (width - right + 24, top + 20 + 26 * i as i32);
            area.draw(&marker(i, at, SERIES[i % SERIES.len()])).map_err(failed)?;
            area.draw(&Text::new(line.name.clone(), (at.0 + 14, at.1 - 8), font(14))).map_err(failed)?;
        }
        Ok(())
    })
}

fn one_line(area: &Area<'_>, line: &Line, i: usize, px: &dyn Fn(f64) -> i32, py: &dyn Fn(f64) -> i32) -> Result<()> {
    let colour = SERIES[i % SERIES.len()];
    let beside = if line.joined { 0 } else { 9 * i as i32 - 13 };
    let points: Vec<(i32, i32)> = line.points.iter().map(|(x, y)| (px(*x) + beside, py(*y))).collect();
    if line.joined {
        area.draw(&PathElement::new(points.clone(), colour.stroke_width(2))).map_err(failed)?;
    } else {
        // A stem to the axis tells which class a marker belongs to.
        for (x, y) in &points {
            area.draw(&PathElement::new([(*x, py(0.0)), (*x, *y)], colour.mix(0.35).stroke_width(2)))
                .map_err(failed)?;
        }
    }
    for ((x, y), spread) in line.points.iter().zip(&line.spread) {
        let ends = [(px(*x), py((y - spread).max(0.0))), (px(*x), py((y + spread).min(100.0)))];
        area.draw(&PathElement::new(ends, colour.stroke_width(1))).map_err(failed)?;
    }
    points.into_iter().try_for_each(|at| area.draw(&marker(i, at, colour)).map_err(failed))
}

/// A number without needless digits.
fn plain(v: f64) -> String {
    if v.fract() == 0.0 { format!("{v:.0}") } else { format!("{v}") }
}

/// Squares of share in `[0, 1]`, a number of percent in each; rows are true classes, columns predicted ones.
pub fn confusions(title: &str, classes: &[String], sides: &[(String, Vec<Vec<f64>>)]) -> Result<String> {
    let (cell, left, top) = (30i32, 190i32, 96i32);
    let (n, gap) = (classes.len() as i32, 60i32);
    let (width, height) = (left + sides.len() as i32 * (n * cell + gap), top + n * cell + 64);
    page((width as u32, height as u32), |area| {
        area.draw(&Text::new(title.to_string(), (12, 14), font(17))).map_err(failed)?;
        for (i, class) in classes.iter().enumerate() {
            let y = top + i as i32 * cell + 8;
            area.draw(&Text::new(format!("{} {class}", i + 1), (12, y), font(14))).map_err(failed)?;
        }
        for (s, (name, shares)) in sides.iter().enumerate() {
            let x0 = left + s as i32 * (n * cell + gap);
            area.draw(&Text::new(name.clone(), (x0, 44), font(15))).map_err(failed)?;
            for (i, row) in shares.iter().enumerate() {
                let number = (x0 + i as i32 * cell + 8, top - 22);
                area.draw(&Text::new((i + 1).to_string(), number, font(13))).map_err(failed)?;
                for (j, share) in row.iter().enumerate() {
                    heat(area, (x0 + j as i32 * cell, top + i as i32 * cell), cell, *share)?;
                }
            }
            let below = (x0, top + n * cell + 12);
            area.draw(&Text::new("predicted class (share of the true class, %)", below, font(13))).map_err(failed)?;
        }
        area.draw(&Text::new("true class", (12, top - 22), font(13))).map_err(failed)
    })
}

fn heat(area: &Area<'_>, (x, y): (i32, i32), cell: i32, share: f64) -> Result<()> {
    let corners = [(x, y), (x + cell, y + cell)];
    area.draw(&Rectangle::new(corners, HEAT.mix(share.clamp(0.0, 1.0)).filled())).map_err(failed)?;
    area.draw(&Rectangle::new(corners, GRID.stroke_width(1))).map_err(failed)?;
    let percent = (100.0 * share).round();
    if percent >= 1.0 {
        let shift = if percent >= 100.0 { 4 } else { 8 };
        area.draw(&Text::new(format!("{percent:.0}"), (x + shift, y + 8), font(12))).map_err(failed)?;
    }
    Ok(())
}

/// Circles whose area is a number of images: holders in columns, classes in rows.
pub fn holders(title: &str, classes: &[String], columns: &[(String, Vec<u32>)]) -> Result<String> {
    let (cell, left, top) = (32i32, 190i32, 70i32);
    let (width, height) = (left + columns.len() as i32 * cell + 40, top + classes.len() as i32 * cell + 100);
    let largest = columns.iter().flat_map(|c| &c.1).copied().max().unwrap_or(1).max(1);
    let radius = |n: u32| (f64::from(n) / f64::from(largest)).sqrt() * f64::from(cell) * 0.48;
    page((width as u32, height as u32), |area| {
        area.draw(&Text::new(title.to_string(), (12, 14), font(17))).map_err(failed)?;
        for (i, class) in classes.iter().enumerate() {
            let y = top + i as i32 * cell;
            area.draw(&Text::new(class.clone(), (12, y + 8), font(14))).map_err(failed)?;
            let line = [(left, y + cell / 2), (width - 30, y + cell / 2)];
            area.draw(&PathElement::new(line, GRID.stroke_width(1))).map_err(failed)?;
        }
        for (c, (name, counts)) in columns.iter().enumerate() {
            let x = left + c as i32 * cell + cell / 2;
            let below = (x - 4 * name.len() as i32, top + classes.len() as i32 * cell + 8);
            area.draw(&Text::new(name.clone(), below, font(13))).map_err(failed)?;
            for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                let colour = SERIES[usize::from(c + 1 == columns.len())];
                let at = (x, top + i as i32 * cell + cell / 2);
                area.draw(&Circle::new(at, radius(*n).max(1.5), colour.filled())).map_err(failed)?;
            }
        }
        let base = top + classes.len() as i32 * cell + 34;
        area.draw(&Text::new("client (S: the server's set)", (left, base), font(14))).map_err(failed)?;
        let mut x = left;
        for n in [largest, largest / 4, largest / 16].into_iter().filter(|n| *n > 0) {
            area.draw(&Circle::new((x + 16, base + 42), radius(n).max(1.5), SERIES[0].filled())).map_err(failed)?;
            area.draw(&Text::new(format!("{n} images"), (x + 38, base + 34), font(13))).map_err(failed)?;
            x += 130;
        }
        Ok(())
    })
}

/// Writes the figures that these runs allow, and gives their paths: accuracy against class frequency and the
/// confusion before and after alignment of each aligned run called `fedllava` (or of the only one), who holds what.
pub fn write(paths: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let rows = &super::all_rows(paths)?;
    let mut written = Vec::new();
    let mut save = |name: &str, svg: String| {
        let path = folder.join(format!("{name}.svg"));
        fsx::write_atomic(&path, svg.as_bytes())?;
        written.push(path);
        Ok::<_, Error>(())
    };
    let Some(run) = rows.iter().find(|r| r.run == "fedllava").or(rows.first()).map(|r| r.run.clone()) else {
        return Ok(Vec::new());
    };
    let Some(dir) = super::directories(paths)?.into_iter().find(|d| super::name_of(d) == run) else {
        return Ok(Vec::new());
    };
    let facts = read_json(&dir.join("eval.json"))?["facts"].clone();
    let classes: Vec<String> = strings(&facts["classes"]);
    let counts: Vec<u32> = numbers(&facts["class_counts"]);
    let of = |run: &str, stage: &str| {
        rows.iter().find(|r| r.run == run && STAGES[r.stage].0 == stage).filter(|r| !r.entries.is_empty())
    };
    if !classes.is_empty() && counts.len() == classes.len() {
        let stages = ["pretrain", "finetune", "align"];
        let mut all: Vec<Line> = Vec::new();
        for stage in stages.iter().filter_map(|s| of(&run, s)) {
            all.push(by_frequency(STAGES[stage.stage].1.to_string(), stage, &counts));
        }
        all.extend(of("scratch", "finetune").map(|r| by_frequency("FedAvg from scratch".into(), r, &counts)));
        let mut ticks: Vec<f64> = counts.iter().map(|c| f64::from(*c)).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let axis = Axis { name: "training images of the class, on all clients", ticks, log: true };
        if axis.ticks.len() > 1 {
            save("frequency", lines("Accuracy of each class against its frequency", &axis, "accuracy (%)", &all)?)?;
        }
        let sides: Vec<(String, Vec<Vec<f64>>)> =
            [("before alignment", of(&run, "finetune")), ("after alignment", of(&run, "align"))]
                .into_iter()
                .filter_map(|(name, row)| Some((name.to_string(), confusion(row?))))
                .collect();
        if sides.len() == 2 {
            save("confusion", confusions("Confusion before and after alignment", &classes, &sides)?)?;
        }
    }
    let columns = held(&facts["held"], classes.len());
    if columns.len() > 1 && !classes.is_empty() {
        save("holders", holders("Who holds what", &classes, &columns)?)?;
    }
    Ok(written)
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(String::from)).collect()
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().into_iter().flatten().filter_map(|n| n.as_u64().map(|n| n as u32)).collect()
}

/// Mean accuracy of each class over the seeds, in percent, against its frequency.
fn by_frequency(name: String, row: &Row, counts: &[u32]) -> Line {
    let n = row.entries.len() as f64;
    let mean = |c: usize| row.entries.iter().filter_map(|e| e["per_class"][c].as_f64()).sum::<f64>() / n;
    let mut points: Vec<(f64, f64)> =
        counts.iter().enumerate().map(|(c, count)| (f64::from(*count), 100.0 * mean(c))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    Line { name, points, spread: Vec::new(), joined: false }
}

/// Rows of the confusion summed over seeds, each as shares.
fn confusion(row: &Row) -> Vec<Vec<f64>> {
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for entry in &row.entries {
        for (i, line) in entry["confusion"].as_array().into_iter().flatten().enumerate() {
            let line = numbers(line);
            if sums.len() <= i {
                sums.push(vec![0.0; line.len()]);
            }
            sums[i].iter_mut().zip(line).for_each(|(s, n)| *s += f64::from(n));
        }
    }
    for line in &mut sums {
        let total = line.iter().sum::<f64>().max(1.0);
        line.iter_mut().for_each(|v| *v /= total);
    }
    sums
}

/// Images of each class that each client and the server hold.
fn held(held: &Value, classes: usize) -> Vec<(String, Vec<u32>)> {
    let counts = |v: &Value| numbers(v).into_iter().chain(std::iter::repeat(0)).take(classes).collect::<Vec<u32>>();
    let clients = held["clients"].as_array().into_iter().flatten().enumerate();
    let mut columns: Vec<(String, Vec<u32>)> = clients.map(|(k, v)| ((k + 1).to_string(), counts(v))).collect();
    columns.push(("S".into(), counts(&held["server"])));
    columns
}

/// Accuracy over the values of one key: a line for each stage with and without pretraining; whiskers are the deviation
/// over seeds.
pub fn curve(paths: &[PathBuf], key: &str, log: bool) -> Result<String> {
    let mut series: BTreeMap<(usize, bool), BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for dir in super::directories(paths)? {
        let Some(x) = value_of(&dir, key)? else { continue };
        let eval = read_json(&dir.join("eval.json"))?;
        let pretrained = eval["facts"]["pretrained"].as_bool() == Some(true);
        for (i, (stage, _)) in STAGES.iter().enumerate() {
            if let Some(accuracy) = eval["stages"][*stage]["overall"].as_f64() {
                let own = matches!(*stage, "finetune" | "align" | "pretrain") && pretrained;
                let at = series.entry((i, own)).or_default().entry(x.to_bits()).or_default();
                at.push(100.0 * accuracy);
            }
        }
    }
    let name = |(stage, pretrained): (usize, bool)| match (STAGES[stage].0, pretrained) {
        ("finetune", true) => "FedAvg from P".to_string(),
        ("align", true) => "aligned, from P".to_string(),
        ("finetune", false) => "FedAvg from scratch".to_string(),
        ("align", false) => "aligned, from scratch".to_string(),
        (_, _) => STAGES[stage].1.trim_start_matches("1 ").to_string(),
    };
    let line = |(which, points): (&(usize, bool), &BTreeMap<u64, Vec<f64>>)| {
        let mut all: Vec<(f64, f64, f64)> =
            points.iter().map(|(x, v)| (f64::from_bits(*x), mean(v), deviation(v))).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line {
            name: name(*which),
            points: all.iter().map(|p| (p.0, p.1)).collect(),
            spread: all.iter().map(|p| p.2).collect(),
            joined: true,
        }
    };
    let all: Vec<Line> = series.iter().filter(|((s, _), _)| STAGES[*s].0 != "probe").map(line).collect();
    let mut ticks: Vec<f64> = all.iter().flat_map(|l| l.points.iter().map(|p| p.0)).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    lines(&format!("Accuracy against {key}"), &Axis { name: key, ticks, log }, "accuracy (%)", &all)
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len().max(1) as f64
}

fn deviation(v: &[f64]) -> f64 {
    let (m, n) = (mean(v), v.len() as f64);
    (v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt()
}

/// The number under a dotted key in a run's config.
fn value_of(dir: &Path, key: &str) -> Result<Option<f64>> {
    let path = dir.join("config.toml");
    let table: toml::Table = toml::from_str(&fsx::read_text(&path)?)
        .map_err(|e| Error::data(format!("{}: {}", path.display(), e.message())))?;
    let mut value = Some(toml::Value::Table(table));
    for part in key.split('.') {
        value = value.and_then(|v| v.get(part).cloned());
    }
    Ok(value.and_then(|v| v.as_float().or_else(|| v.as_integer().map(|i| i as f64))))
}
