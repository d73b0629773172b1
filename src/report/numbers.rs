//! Means, deviations, intervals.

/// Values over seeds and what they amount to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    /// One value a seed, in the seeds' order.
    pub values: Vec<f64>,
}

impl Spread {
    /// Of some values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        Spread { values: values.into_iter().collect() }
    }

    /// Their mean; `None` where there is none.
    pub fn mean(&self) -> Option<f64> {
        let n = self.values.len();
        (n > 0).then(|| self.values.iter().sum::<f64>() / n as f64)
    }

    /// Their standard deviation (n − 1); `None` for fewer than two.
    pub fn deviation(&self) -> Option<f64> {
        let (n, mean) = (self.values.len(), self.mean()?);
        let squares: f64 = self.values.iter().map(|v| (v - mean).powi(2)).sum();
        (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
    }

    /// The 95 % interval of the mean by Student's t; `None` for fewer than two values.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let (n, mean) = (self.values.len(), self.mean()?);
        let half = student(n.max(2) - 1) * self.deviation()? / (n as f64).sqrt();
        Some((mean - half, mean + half))
    }

    /// In percent with so many decimals, the deviation where there is one and it is asked for; a dash without values.
    pub fn percent(&self, decimals: usize, deviation: bool) -> String {
        let Some(mean) = self.mean() else { return "–".into() };
        match self.deviation().filter(|_| deviation) {
            Some(d) => format!("{:.decimals$} ± {:.decimals$}", 100.0 * mean, 100.0 * d),
            None => format!("{:.decimals$}", 100.0 * mean),
        }
    }
}

/// The 97.5 % quantile of Student's t with so many degrees of freedom, at least 1: tabulated to 10, beyond by the
/// expansion of Cornish and Fisher in 1/ν (Abramowitz and Stegun 26.7.5), whose error there is below 0.001.
pub fn student(freedom: usize) -> f64 {
    const TABLE: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    if let Some(value) = TABLE.get(freedom.max(1) - 1) {
        return *value;
    }
    let (z, v) = (1.959_964_f64, freedom as f64);
    let (g1, g2) = ((z.powi(3) + z) / 4.0, (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0);
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + g1 / v + g2 / v.powi(2) + g3 / v.powi(3)
}

/// Seeds as people write them: `7`, `7, 9`, `7 to 16`.
pub fn ranges(sorted: &[u64]) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for &seed in sorted {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == seed => *last = seed,
            _ => parts.push((seed, seed)),
        }
    }
    let text = |(a, b): &(u64, u64)| match b - a {
        0 => a.to_string(),
        1 => format!("{a}, {b}"),
        _ => format!("{a} to {b}"),
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_student_are_the_tabulated_ones() {
        // R: qt(0.975, c(1, 9, 11, 20, 29, 100))
        for (v, want) in [(1, 12.7062), (9, 2.2622), (11, 2.2010), (20, 2.0860), (29, 2.0452), (100, 1.9840)] {
            assert!((student(v) - want).abs() < 1e-3, "{v}: {} {want}", student(v));
        }
    }

    #[test]
    fn an_interval_is_the_mean_and_t_times_the_error() {
        // 10, 12, 8: mean 10, deviation 2, half-width 4.3027 · 2 / √3.
        let (low, high) = Spread::of([10.0, 12.0, 8.0]).interval().unwrap();
        assert!((low + high - 20.0).abs() < 1e-9 && (high - low - 2.0 * 4.96834).abs() < 1e-4);
        assert_eq!(Spread::of([1.0]).interval(), None);
        assert_eq!(Spread::default().percent(2, true), "–");
    }

    #[test]
    fn seeds_in_a_row_are_written_as_a_range() {
        assert_eq!(ranges(&[1, 2, 4, 7, 8, 9]), "1, 2, 4, 7 to 9");
    }
}
