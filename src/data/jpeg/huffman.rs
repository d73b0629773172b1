//! Huffman codes of a baseline scan, bits by sixty-four.

use super::header::ZIGZAG;

/// Bits that one look-up sees.
const LOOK: usize = 10;

/// A Huffman table.
pub(super) struct Table {
    /// By the next `LOOK` bits: length of the code and its symbol; length 0 where the code is longer.
    look: Box<[(u8, u8); 1 << LOOK]>,
    /// By the same, where code and value fit: the value (16 bits; 0 where the code has none), the coefficients before it
    /// (8), bits of both (8). 0 where they do not.
    whole: Box<[i32; 1 << LOOK]>,
    /// By the same: bits of a code and its value, and how many coefficients it stands for; 0 bits where the code is longer.
    steps: Box<[(u8, u8); 1 << LOOK]>,
    symbols: Vec<u8>,
    /// For each length the first code behind it, in 16 bits; what to add to a code for its symbol's place.
    ends: [u32; 18],
    places: [i32; 17],
}

impl Table {
    /// From the number of codes of each length and their symbols. None where that is no code.
    pub fn new(lengths: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table = Table {
            look: Box::new([(0, 0); 1 << LOOK]),
            whole: Box::new([0; 1 << LOOK]),
            steps: Box::new([(0, 0); 1 << LOOK]),
            symbols: symbols.to_vec(),
            ends: [0; 18],
            places: [0; 17],
        };
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16 {
            table.places[length] = place as i32 - code as i32;
            for _ in 0..lengths[length - 1] {
                if code >= 1 << length {
                    return None;
                }
                if length <= LOOK {
                    let first = (code as usize) << (LOOK - length);
                    table.look[first..first + (1 << (LOOK - length))].fill((length as u8, symbols[place]));
                }
                code += 1;
                place += 1;
            }
            table.ends[length] = code << (16 - length);
            code <<= 1;
        }
        table.ends[17] = u32::MAX;
        for bits in 0..1 << LOOK {
            table.whole[bits] = table.coefficient(bits);
            table.steps[bits] = match table.look[bits] {
                (0, _) => (0, 0),
                (length, symbol) => (length + (symbol & 15), stands_for(symbol)),
            };
        }
        Some(table)
    }

    /// Length and symbol of a code longer than a look-up sees, which stands on top of `held`.
    #[cold]
    #[inline(never)]
    fn long(&self, held: u64) -> Option<(u32, u8)> {
        let code = (held >> 48) as u32;
        let length = (LOOK + 1..=17).find(|&l| code < self.ends[l]).filter(|l| *l <= 16)?;
        let place = (code >> (16 - length)) as i32 + self.places[length];
        Some((length as u32, *self.symbols.get(usize::try_from(place).ok()?)?))
    }

    fn coefficient(&self, bits: usize) -> i32 {
        let (length, symbol) = self.look[bits];
        let size = usize::from(symbol & 15);
        let used = usize::from(length) + size;
        if length == 0 || used > LOOK {
            return 0;
        }
        let value = extend((bits >> (LOOK - used)) as i32 & ((1 << size) - 1), size as u32);
        value << 16 | i32::from(stands_for(symbol) - 1) << 8 | used as i32
    }
}

/// How many coefficients a symbol stands for: zeros and one more, or all that are left.
fn stands_for(symbol: u8) -> u8 {
    if symbol & 15 == 0 && symbol < 0xf0 { 64 } else { (symbol >> 4) + 1 }
}

/// The value of `size` bits: those that begin with 0 are negative.
fn extend(bits: i32, size: u32) -> i32 {
    if bits < 1 << size >> 1 { bits - (1 << size) + 1 } else { bits }
}

/// Reads the bits of a scan. A value, so that it stays in registers: rare work takes and returns it.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, the first one on top.
    held: u64,
    left: u32,
    /// Zeros that were put behind the end, or before a marker.
    invented: u32,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Bits { data, at: 0, held: 0, left: 0, invented: 0 }
    }

    /// At least 56 bits.
    #[inline(always)]
    fn fill(&mut self) {
        if let Some(next) = self.data.get(self.at..).and_then(|d| d.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*next);
            // Whether a byte is 0xff: whether a byte of the complement is 0.
            let ones = !word;
            if ones.wrapping_sub(0x0101_0101_0101_0101) & !ones & 0x8080_8080_8080_8080 == 0 {
                self.held |= word >> self.left;
                self.at += ((63 - self.left) >> 3) as usize;
                self.left |= 56;
                return;
            }
        }
        *self = self.filled_slowly();
    }

    #[cold]
    #[inline(never)]
    fn filled_slowly(mut self) -> Self {
        // The bits below `left` may be there already, by the fast way.
        self.held &= !(u64::MAX.checked_shr(self.left).unwrap_or(0));
        while self.left < 56 {
            let byte = match (self.data.get(self.at), self.data.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                (Some(0xff), _) | (None, _) => {
                    self.invented += 8;
                    0
                }
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.held |= u64::from(byte) << (56 - self.left);
            self.left += 8;
        }
        self
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.held <<= n;
        self.left -= n;
    }

    #[inline(always)]
    fn symbol(&mut self, table: &Table) -> Option<u8> {
        let (length, symbol) = table.look[(self.held >> (64 - LOOK)) as usize];
        if length > 0 {
            self.skip(u32::from(length));
            return Some(symbol);
        }
        let (length, symbol) = table.long(self.held)?;
        self.skip(length);
        Some(symbol)
    }

    /// A value of `size` bits, 0 to 15.
    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        let bits = (self.held >> 1 >> (63 - size)) as i32;
        self.skip(size);
        extend(bits, size)
    }

    /// The difference of a block's mean from the one before.
    #[inline(always)]
    fn dc(&mut self, table: &Table) -> Option<i32> {
        self.fill();
        let size = u32::from(self.symbol(table)?);
        if size > 15 { None } else { Some(self.value(size)) }
    }

    /// One block's coefficients, in natural order, into zeros. Returns the last one's place in zigzag order.
    #[inline(always)]
    pub fn block(&mut self, (dc, ac): (&Table, &Table), mean: &mut i32, out: &mut [i16; 64]) -> Option<usize> {
        *mean = mean.wrapping_add(self.dc(dc)?);
        out[0] = *mean as i16;
        let (mut k, mut last) = (1, 0);
        while k < 64 {
            if self.left < 32 {
                self.fill();
            }
            let whole = ac.whole[(self.held >> (64 - LOOK)) as usize];
            let value = if whole != 0 {
                self.skip(whole as u32 & 0xff);
                k += (whole >> 8 & 0xff) as usize;
                whole >> 16
            } else {
                let symbol = self.symbol(ac)?;
                k += usize::from(stands_for(symbol) - 1);
                self.value(u32::from(symbol & 15))
            };
            // The end of the block, or sixteen zeros.
            if value != 0 {
                out[usize::from(ZIGZAG[k]) & 63] = value as i16;
                last = k;
            }
            k += 1;
        }
        (last < 64).then_some(last)
    }

    /// The same, but for the mean forgotten.
    #[inline(always)]
    pub fn pass(&mut self, (dc, ac): (&Table, &Table), mean: &mut i32) -> Option<()> {
        *mean = mean.wrapping_add(self.dc(dc)?);
        let mut k = 1;
        while k < 64 {
            if self.left < 32 {
                self.fill();
            }
            let (bits, count) = ac.steps[(self.held >> (64 - LOOK)) as usize];
            if bits > 0 {
                self.skip(u32::from(bits));
                k += usize::from(count);
            } else {
                let symbol = self.symbol(ac)?;
                self.skip(u32::from(symbol & 15));
                k += usize::from(stands_for(symbol));
            }
        }
        Some(())
    }

    /// Goes on behind the next restart marker, which must be here and have this number.
    pub fn restart(&mut self, number: u8) -> Option<()> {
        if self.spent() {
            return None;
        }
        let found = self.data.get(self.at..)?.first_chunk::<2>()?;
        if *found != [0xff, 0xd0 + number] {
            return None;
        }
        *self = Bits { at: self.at + 2, ..Bits::new(self.data) };
        Some(())
    }

    /// Whether bits were used that the file does not have.
    pub fn spent(&self) -> bool {
        self.invented > self.left
    }
}
