//! A batch of samples for one or several clients.

/// `sum(rows)` samples: the first `rows[0]` are client 0's, the next `rows[1]` client 1's, and so on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Images, normalised, `(samples, channels, height, width)` row-major.
    pub x: Vec<f32>,
    /// Labels, `(samples,)`.
    pub y: Vec<u32>,
    /// Index of each sample in its data set, `(samples,)`: joins cached columns (teacher distributions).
    pub ids: Vec<u32>,
    /// Samples of each client side by side, `(clients,)`. One entry on a CPU.
    pub rows: Vec<usize>,
}

impl Batch {
    /// Samples of all clients.
    pub fn len(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Puts another batch of the same client behind this one.
    pub fn append(&mut self, other: &Batch) {
        self.x.extend_from_slice(&other.x);
        self.y.extend_from_slice(&other.y);
        self.ids.extend_from_slice(&other.ids);
        self.rows = vec![self.len() + other.len()];
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
