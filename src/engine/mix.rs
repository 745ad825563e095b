//! Mixes of several texts.

use super::Text;
use crate::device::{HostTensor, Interpolation};

impl Text<HostTensor> {
    /// The mix of `parts`, texts of one shape with their shares, which add up to 1; `None` of none. The arc of more than two
    /// is gone along one after the other: each text takes its share of what came before it.
    pub fn mix(parts: &[(f64, &Self)], how: Interpolation) -> Option<Self> {
        let ((first, text), others) = parts.split_first()?;
        let mut mixed = (*text).clone();
        let mut sum = *first;
        for (share, text) in others {
            sum += share;
            // Shares that are next to nothing may add up to nothing.
            if sum > 0.0 {
                mixed = Self::between(&mixed, text, share / sum, how);
            }
        }
        Some(mixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
    }

    fn texts() -> [Text<HostTensor>; 3] {
        let text = |embedding: [f32; 6], pooled: [f32; 2]| Text {
            embedding: HostTensor::new(&[1, 2, 3], embedding.to_vec()),
            pooled: Some(HostTensor::new(&[1, 2], pooled.to_vec())),
        };
        [
            text([1.0, 2.0, -1.0, 10.0, 0.5, 0.25], [3.0, 4.0]),
            text([-0.5, 1.0, 3.0, 9.0, -4.0, 1.0], [-1.0, 2.0]),
            text([0.25, -2.0, 0.5, 1.0, 1.0, 8.0], [0.5, -0.5]),
        ]
    }

    /// The numbers of tools/reference/prompt_mixes.py.
    #[test]
    fn mixes_are_those_of_the_reference() {
        use Interpolation::{Linear, Spherical};
        let texts = texts();
        type Case<'a> = (Interpolation, &'a [f64], [f32; 6], [f32; 2]);
        let cases: [Case; 4] = [
            (
                Linear,
                &[0.7, 0.3],
                [0.55, 1.7, 0.2, 9.7, -0.85, 0.475],
                [1.8, 3.4],
            ),
            (
                Spherical,
                &[0.7, 0.3],
                [0.704594, 2.437474, 0.580763, 9.930193, -0.885014, 0.488857],
                [1.98237, 3.858356],
            ),
            (
                Linear,
                &[0.5, 0.2, 0.3],
                [0.475, 0.6, 0.25, 7.1, -0.25, 2.725],
                [1.45, 2.25],
            ),
            (
                Spherical,
                &[0.5, 0.2, 0.3],
                [1.556912, 1.764814, 1.484448, 8.817854, -0.276628, 3.731673],
                [2.340009, 3.642494],
            ),
        ];
        for (interpolation, shares, embedding, pooled) in cases {
            let parts: Vec<_> = shares.iter().copied().zip(&texts).collect();
            let mixed = Text::mix(&parts, interpolation).unwrap();
            let what = format!("{interpolation:?} {shares:?}: {mixed:?}");
            assert!(close(mixed.embedding.data(), &embedding), "{what}");
            assert!(close(mixed.pooled.unwrap().data(), &pooled), "{what}");
        }
        assert!(Text::mix(&[], Linear).is_none());
        // A share of nothing is nothing.
        let parts = [(0.0, &texts[0]), (0.0, &texts[1]), (1.0, &texts[2])];
        let mixed = Text::mix(&parts, Spherical).unwrap();
        assert_eq!(mixed.embedding, texts[2].embedding);
    }

    #[test]
    fn the_ends_are_the_texts_themselves() {
        let [a, b, _] = texts();
        for interpolation in [Interpolation::Linear, Interpolation::Spherical] {
            for (share, end) in [(0.0, &a), (1.0, &b)] {
                let text = Text::between(&a, &b, share, interpolation);
                assert_eq!(text.embedding, end.embedding);
                assert_eq!(text.pooled, end.pooled);
            }
        }
    }
}
