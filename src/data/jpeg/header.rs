//! What stands before a JPEG's pixels: size, components and tables.

use super::huffman::Table;

/// Natural order of the coefficients that files hold in zigzag order; sixteen more for damaged runs.
pub(super) const ZIGZAG: [u8; 80] = {
    let mut order = [63; 80];
    let (mut row, mut column, mut k) = (0i32, 0i32, 0);
    while k < 64 {
        order[k] = (8 * row + column) as u8;
        let up = (row + column) % 2 == 0;
        if up {
            if column == 7 {
                row += 1;
            } else {
                column += 1;
                row = if row > 0 { row - 1 } else { row };
            }
        } else if row == 7 {
            column += 1;
        } else {
            row += 1;
            column = if column > 0 { column - 1 } else { column };
        }
        k += 1;
    }
    order
};

/// Where a picture's brightness is finer than its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampling {
    /// Brightness samples across for each of colour: 1 or 2.
    pub across: usize,
    /// And down.
    pub down: usize,
}

/// A component: brightness or one of the two colour differences.
#[derive(Clone, Copy)]
pub(super) struct Component {
    id: u8,
    sampling: (u8, u8),
    quant: u8,
    pub dc: u8,
    pub ac: u8,
}

/// A baseline JPEG with one scan: grey, or brightness and two colours.
pub(super) struct Header<'a> {
    pub height: usize,
    pub width: usize,
    pub sampling: Sampling,
    pub components: Vec<Component>,
    /// In natural order.
    quants: [Option<[i16; 64]>; 4],
    tables: [[Option<Table>; 4]; 2],
    /// Units between restarts, 0 for none.
    pub restart: usize,
    /// Whether EXIF says that the picture is to be turned.
    pub turned: bool,
    /// The scan.
    pub scan: &'a [u8],
}

impl<'a> Header<'a> {
    /// None where the file is of another kind, or damaged.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut header = Header {
            height: 0,
            width: 0,
            sampling: Sampling { across: 1, down: 1 },
            components: Vec::new(),
            quants: [None; 4],
            tables: Default::default(),
            restart: 0,
            turned: false,
            scan: &[],
        };
        let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
        loop {
            let (&[0xff, marker], after) = rest.split_first_chunk::<2>()? else { return None };
            if marker == 0xff {
                rest = &rest[1..];
                continue;
            }
            let length = usize::from(u16::from_be_bytes(*after.first_chunk::<2>()?));
            let segment = after.get(2..length)?;
            rest = &after[length..];
            match marker {
                0xc0 | 0xc1 => header.frame(segment)?,
                0xc4 => header.huffman(segment)?,
                0xdb => header.quantisation(segment)?,
                0xdd => header.restart = usize::from(u16::from_be_bytes(*segment.first_chunk::<2>()?)),
                0xe1 => header.turned |= segment.strip_prefix(b"Exif\0\0").is_some_and(turns),
                0xee if segment.starts_with(b"Adobe") && segment.get(11) != Some(&1) => return None,
                0xda => {
                    header.scan = rest;
                    return header.start(segment).then_some(header);
                }
                0xe0..=0xef | 0xfe => {}
                _ => return None,
            }
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let (&[bits, h1, h0, w1, w0, count], parts) = segment.split_first_chunk::<6>()?;
        (self.height, self.width) = (usize::from(h1) << 8 | usize::from(h0), usize::from(w1) << 8 | usize::from(w0));
        let one = |p: &[u8; 3]| Component { id: p[0], sampling: (p[1] >> 4, p[1] & 15), quant: p[2] & 3, dc: 0, ac: 0 };
        let again = !self.components.is_empty();
        self.components = parts.as_chunks::<3>().0.iter().map(one).collect();
        let fits = bits == 8 && self.components.len() == usize::from(count) && self.height > 0 && self.width > 0;
        match self.components.as_slice() {
            [_] if fits && !again => {}
            [y, cb, cr] if fits && !again => {
                let (across, down) = (usize::from(y.sampling.0), usize::from(y.sampling.1));
                self.sampling = Sampling { across, down };
                let known = matches!((across, down), (1, 1) | (2, 1) | (2, 2));
                let rgb = [y.id, cb.id, cr.id] == *b"RGB";
                if !known || rgb || cb.sampling != (1, 1) || cr.sampling != (1, 1) {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn quantisation(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, after)) = segment.split_first() {
            let (values, rest) = after.split_first_chunk::<64>()?;
            if kind > 3 {
                return None;
            }
            let mut natural = [0; 64];
            values.iter().zip(ZIGZAG).for_each(|(v, at)| natural[usize::from(at)] = i16::from(*v));
            self.quants[usize::from(kind)] = Some(natural);
            segment = rest;
        }
        Some(())
    }

    fn huffman(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, after)) = segment.split_first() {
            let (lengths, after) = after.split_first_chunk::<16>()?;
            let (symbols, rest) = after.split_at_checked(lengths.iter().map(|n| usize::from(*n)).sum())?;
            let table = Table::new(lengths, symbols)?;
            *self.tables.get_mut(usize::from(kind >> 4))?.get_mut(usize::from(kind & 15))? = Some(table);
            segment = rest;
        }
        Some(())
    }

    /// Whether the scan holds all components, and every table is there.
    fn start(&mut self, segment: &[u8]) -> bool {
        let Some((&count, parts)) = segment.split_first() else { return false };
        let whole = usize::from(count) == self.components.len() && parts.len() == 2 * usize::from(count) + 3;
        if !whole || self.components.is_empty() {
            return false;
        }
        for (c, p) in self.components.iter_mut().zip(parts.as_chunks::<2>().0) {
            if c.id != p[0] || p[1] >> 4 > 3 || p[1] & 15 > 3 {
                return false;
            }
            (c.dc, c.ac) = (p[1] >> 4, p[1] & 15);
        }
        self.components.iter().all(|c| self.parts(c).is_some())
    }

    /// A component's tables: DC, AC, quantisation.
    pub fn parts(&self, c: &Component) -> Option<(&Table, &Table, &[i16; 64])> {
        let [dc, ac] = &self.tables;
        let quant = self.quants[usize::from(c.quant)].as_ref()?;
        Some((dc[usize::from(c.dc)].as_ref()?, ac[usize::from(c.ac)].as_ref()?, quant))
    }
}

fn turns(exif: &[u8]) -> bool {
    use image::metadata::Orientation;
    Orientation::from_exif_chunk(exif).is_some_and(|o| o != Orientation::NoTransforms)
}
