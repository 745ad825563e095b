//! What lies between two vectors.

/// The vector at `share` of the way from `a` to `b` along the arc between them (Shoemake 1985). Between independent
/// normal vectors that is normal again, which their weighted mean is not. Vectors that are almost parallel, or opposite,
/// have no arc of their own and give the weighted mean. At 0 and 1 it is `a` and `b`, bit for bit.
pub fn slerp(a: &[f32], b: &[f32], share: f64) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    match angle.sin() {
        sine if sine > 1e-6 => weighted(
            a,
            b,
            ((1.0 - share) * angle).sin() / sine,
            (share * angle).sin() / sine,
        ),
        // Also where one is 0, and the angle no number.
        _ => weighted(a, b, 1.0 - share, share),
    }
}

/// p·a + q·b, element by element.
pub fn weighted(a: &[f32], b: &[f32], p: f64, q: f64) -> Vec<f32> {
    let both = a.iter().zip(b);
    both.map(|(x, y)| (p * f64::from(*x) + q * f64::from(*y)) as f32)
        .collect()
}
