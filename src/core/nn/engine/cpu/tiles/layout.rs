//! Where a split copy of some images has its pixels: so that the windows of neighbouring outputs lie at one distance.
//!
//! A tile wants sixteen rows (or thirty-two values) at equal distances. Along a row of outputs that is so if the pixels
//! that windows `s` apart begin with lie side by side: columns (and rows) are sorted by their remainder modulo `s`.
//! Where rows are short, pixels of several images take turns: `[row][column][image]` is one long row.

use super::super::map::Map;

/// Images that may take turns.
const TURNS: [usize; 4] = [1, 2, 4, 8];

/// Which windows read a map, and how their results lie.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    /// What they read.
    pub map: Map,
    /// The pixel of the bordered map at tap `(0, 0)` of output `(0, 0)`.
    pub corner: (usize, usize),
    /// Taps `(row, column)`.
    pub taps: Vec<(usize, usize)>,
    /// Pixels from one window to the next.
    pub step: usize,
    /// Rows and columns of outputs.
    pub out: (usize, usize),
}

/// The order of pixels of a band of rows of some images.
#[derive(Debug)]
pub(super) struct Lattice {
    /// Images that take turns.
    pub turns: usize,
    /// Outputs of a row that are computed at once, `turns` images: divides `columns`.
    pub run: usize,
    /// Outputs of a row of all images that take turns.
    pub columns: usize,
    /// Rows of outputs in a band; divides all rows.
    pub band: usize,
    /// Bands of an image.
    pub bands: usize,
    /// Places from one row of outputs to the next.
    pub row: usize,
    /// Place of each tap.
    pub taps: Vec<usize>,
    /// Column and image of each output of a row.
    pub outputs: Vec<(usize, usize)>,
    /// First float of each place, from the first band of the images that take turns; none where no window reads.
    from: Vec<Option<u32>>,
    /// Floats from one band to the next.
    pub next: usize,
}

impl Lattice {
    /// An order for runs of at most `limit` outputs (a multiple of `unit`), in bands of at most `room` places if that
    /// can be. None if no run is `worth` it.
    pub fn new(windows: &Windows, [limit, unit, worth]: [usize; 3], room: usize) -> Option<Self> {
        let (rows, columns) = windows.out;
        let longest = |turns: usize| {
            (1..=limit).rev().find(|n| (columns * turns).is_multiple_of(*n) && n.is_multiple_of(unit)).unwrap_or(0)
        };
        // The fewest turns that come near the best.
        let best = TURNS.map(longest).into_iter().max()?;
        let turns = TURNS.into_iter().find(|&t| 8 * longest(t) >= 7 * best)?;
        if longest(turns) < worth {
            return None;
        }
        let band = (1..=rows).rev().find(|b| rows.is_multiple_of(*b) && sides(windows, turns, *b).size() <= room);
        let (band, step) = (band.unwrap_or(1), windows.step);
        let sides = sides(windows, turns, band);
        let taps = windows.taps.iter().map(|&(y, x)| sides.place((y % step, y / step), (x % step, x / step), 0));
        Some(Lattice {
            turns,
            run: longest(turns),
            columns: columns * turns,
            band,
            bands: rows / band,
            row: sides.phases * sides.wide * turns,
            taps: taps.collect(),
            outputs: (0..columns * turns).map(|column| (column / turns, column % turns)).collect(),
            from: sides.from(windows, (band, columns)),
            next: band * step * windows.map.row(),
        })
    }

    /// Where the window of output `column` of `row` in its band begins.
    pub fn base(&self, row: usize, column: usize) -> usize {
        row * self.row + column
    }

    /// Places.
    pub fn places(&self) -> usize {
        self.from.len()
    }

    /// The floats of a place, of `count` images that begin at `at`; null where there are none.
    pub fn pixel(&self, place: usize, at: *const f32, count: usize) -> *const f32 {
        match self.from.get(place) {
            Some(&Some(from)) if count >= self.turns || place % self.turns < count => at.wrapping_add(from as usize),
            _ => std::ptr::null(),
        }
    }
}

/// Extents of a lattice: `[row phase][high][column phase][wide][turns]`.
struct Sides {
    phases: usize,
    high: usize,
    wide: usize,
    turns: usize,
}

fn sides(windows: &Windows, turns: usize, band: usize) -> Sides {
    let last = |of: fn(&(usize, usize)) -> usize| windows.taps.iter().map(of).max().unwrap_or(0);
    let (y, x) = (last(|t| t.0), last(|t| t.1));
    let phases = windows.step.min(y.max(x) + 1);
    let wide = windows.out.1 + x / windows.step;
    // Rows begin at even places.
    let wide = if turns == 1 { wide.next_multiple_of(2) } else { wide };
    Sides { phases, high: band + y / windows.step, wide, turns }
}

impl Sides {
    fn size(&self) -> usize {
        self.phases * self.phases * self.high * self.wide * self.turns
    }

    /// The place of a pixel: phase and quotient of its row and of its column, and its image.
    fn place(&self, (fy, y): (usize, usize), (fx, x): (usize, usize), image: usize) -> usize {
        (((fy * self.high + y) * self.phases + fx) * self.wide + x) * self.turns + image
    }

    /// First float of every place that a window of the first band reads.
    fn from(&self, windows: &Windows, (rows, columns): (usize, usize)) -> Vec<Option<u32>> {
        let (map, step) = (&windows.map, windows.step);
        let mut from = vec![None; self.size()];
        for &(ty, tx) in &windows.taps {
            for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                let (py, px) = (windows.corner.0 + y * step + ty, windows.corner.1 + x * step + tx);
                for image in 0..self.turns {
                    let at = self.place((ty % step, y + ty / step), (tx % step, x + tx / step), image);
                    from[at] = Some((image * map.image() + py * map.row() + px * map.cp) as u32);
                }
            }
        }
        from
    }
}
