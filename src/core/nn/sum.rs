//! Weighted sums of f32 vectors in f64: the inner loop of aggregation.

/// Vectors that one pass over the running sum takes in.
const GROUP: usize = 4;
/// Elements whose sum stays in the first-level cache while all vectors are added.
const BLOCK: usize = 1024;

/// `sum[i] += Σ_k weights[k] · vectors[k][i]`: the inner sum alone first, from 0, the vectors one after the other; then
/// one addition to `sum[i]`. Vectors are read once and `sum` is touched once. The same bits on any machine. All vectors
/// are at least as long as `sum`; a longer one's rest is ignored.
pub fn add_weighted(sum: &mut [f64], weights: &[f64], vectors: &[&[f32]]) {
    let mut inner = [0.0; BLOCK];
    for (b, block) in sum.chunks_mut(BLOCK).enumerate() {
        let (inner, from, to) = (&mut inner[..block.len()], b * BLOCK, b * BLOCK + block.len());
        inner.fill(0.0);
        let part = |k: usize| &vectors[k][from..to];
        let (count, mut k) = (weights.len().min(vectors.len()), 0);
        while k + GROUP <= count {
            let w = [weights[k], weights[k + 1], weights[k + 2], weights[k + 3]];
            let x = [part(k), part(k + 1), part(k + 2), part(k + 3)];
            add(inner, w, x);
            k += GROUP;
        }
        (k..count).for_each(|k| add(inner, [weights[k]], [part(k)]));
        block.iter_mut().zip(&*inner).for_each(|(s, i)| *s += i);
    }
}

/// Products and sums are rounded one by one (Rust never fuses them), so wider registers change no bit.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "one index over several slices")]
fn body<const N: usize>(sum: &mut [f64], weights: [f64; N], vectors: [&[f32]; N]) {
    let len = vectors.iter().fold(sum.len(), |n, v| n.min(v.len()));
    let (sum, vectors) = (&mut sum[..len], vectors.map(|v| &v[..len]));
    for i in 0..len {
        let mut s = sum[i];
        for k in 0..N {
            s += weights[k] * f64::from(vectors[k][i]);
        }
        sum[i] = s;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<const N: usize>(sum: &mut [f64], weights: [f64; N], vectors: [&[f32]; N]) {
    body(sum, weights, vectors);
}

fn add<const N: usize>(sum: &mut [f64], weights: [f64; N], vectors: [&[f32]; N]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was just detected; the function is safe otherwise.
        return unsafe { avx2(sum, weights, vectors) };
    }
    body(sum, weights, vectors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_groups_give_the_bits_of_one_vector_after_the_other() {
        for (count, len) in [(0, 5), (1, 37), (3, 2 * BLOCK), (9, BLOCK + 1), (16, 3 * BLOCK + 77)] {
            let vectors: Vec<Vec<f32>> =
                (0..count).map(|k| (0..len).map(|i| ((i * 31 + k * 17) as f32).sin()).collect()).collect();
            let weights: Vec<f64> = (0..count).map(|k| 1.0 / (3.0 + k as f64)).collect();
            let mut inner = vec![0.0; len];
            for (w, v) in weights.iter().zip(&vectors) {
                inner.iter_mut().zip(v).for_each(|(s, &x)| *s += w * f64::from(x));
            }
            let want: Vec<f64> = inner.iter().map(|i| 0.1 + i).collect();
            let mut got = vec![0.1; len];
            let views: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
            add_weighted(&mut got, &weights, &views);
            assert_eq!(got, want, "{count} vectors of {len}");
        }
    }
}
