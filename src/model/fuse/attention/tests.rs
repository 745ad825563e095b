//! Sizes and layouts by themselves. Whole graphs are in `tests/attention.rs`.

use super::layout::{Axis, Layout};
use crate::model::fuse::size::Size;

fn named(name: u32) -> Size {
    Size::named(name)
}

fn known(number: i64) -> Size {
    Size::known(number)
}

fn axes(layout: &Layout) -> Vec<Vec<Axis>> {
    let groups = layout.groups().iter();
    let axes = |group: &Vec<(Axis, Size)>| group.iter().map(|(axis, _)| *axis).collect();
    groups.map(axes).collect()
}

#[test]
fn sizes_are_multiplied_and_divided_as_far_as_that_can_be_told() {
    let (rows, places) = (named(0), named(1));
    let both = rows.times(&places).unwrap().times(&known(6)).unwrap();
    assert_eq!(
        both,
        Size::product([&known(3), &places, &known(2), &rows]).unwrap()
    );
    assert_eq!(both.by(&rows).unwrap(), places.times(&known(6)).unwrap());
    assert_eq!(both.by(&known(4)), None);
    assert_eq!(rows.by(&places), None);
    assert_eq!(rows.by(&rows), Some(known(1)));
    assert_eq!(known(1).by(&known(0)), None);
    assert_eq!(known(i64::MIN).by(&known(-1)), None);
    assert_eq!(known(i64::MAX).times(&known(2)), None);
    // No more names than a tensor has dimensions.
    let large = Size::product(std::iter::repeat_n(&rows, 16)).unwrap();
    assert_eq!(large.times(&rows), None);
}

#[test]
fn sizes_are_equal_different_or_neither() {
    let (rows, places) = (named(0), named(1));
    assert_eq!(rows.equals(&rows), Some(true));
    assert_eq!(known(3).equals(&known(4)), Some(false));
    assert_eq!(rows.equals(&places), None);
    assert_eq!(rows.equals(&known(1)), None);
    // What a dimension never is.
    assert_eq!(rows.equals(&known(-1)), Some(false));
    assert_eq!(known(0).equals(&places), Some(false));
}

#[test]
fn channels_are_taken_apart_and_put_together() {
    let (rows, places) = (named(0), named(1));
    let base = Layout::of(&[rows.clone(), places.clone(), known(12)]).unwrap();
    let heads = [rows.clone(), places.clone(), known(3), known(4)];
    let apart = base.reshaped(&heads).unwrap();
    assert_eq!(apart.heads(), Some(3));
    let by_head = apart.transposed(&[0, 2, 1, 3]).unwrap();
    assert!(by_head.is_by_head([Axis::Place, Axis::Inner]));
    assert!(!by_head.is_by_head([Axis::Inner, Axis::Place]));
    assert!(!apart.is_by_head([Axis::Place, Axis::Inner]));
    // Rows and heads in one.
    let merged = [rows.times(&known(3)).unwrap(), places.clone(), known(4)];
    let merged = by_head.reshaped(&merged).unwrap();
    assert_eq!(axes(&merged)[0], [Axis::Row, Axis::Head]);
    assert!(merged.is_by_head([Axis::Place, Axis::Inner]));
    // And back.
    let back = merged.reshaped(&[rows.clone(), known(3), places.clone(), known(4)]);
    assert_eq!(back.unwrap(), by_head);
    let whole = [rows.clone(), places.clone(), known(12)];
    assert!(apart.reshaped(&whole).unwrap().is_by_place());
    // Not turned back: places and heads are mixed.
    assert!(by_head.reshaped(&whole).is_none());
    // Other heads than there are.
    let other = [rows.clone(), places.clone(), known(4), known(3)];
    assert!(apart.reshaped(&other).is_none());
    assert!(
        base.reshaped(&[rows.clone(), places.clone(), known(5), known(4)])
            .is_none()
    );
    assert!(base.reshaped(&[places, rows, known(12)]).is_none());
    assert!(Layout::of(&heads).is_none());
}

#[test]
fn axes_of_size_one_find_their_place() {
    let places = named(1);
    // One row, and one head that is an axis of its own.
    let base = Layout::of(&[known(1), places.clone(), known(12)]).unwrap();
    let apart = base
        .reshaped(&[known(1), places.clone(), known(1), known(12)])
        .unwrap();
    assert_eq!(apart.heads(), Some(1));
    let by_head = apart.transposed(&[0, 2, 1, 3]).unwrap();
    assert!(by_head.is_by_head([Axis::Place, Axis::Inner]));
    let back = by_head.transposed(&[0, 2, 1, 3]).unwrap();
    let back = back
        .reshaped(&[known(1), places.clone(), known(12)])
        .unwrap();
    assert!(back.is_by_place());
    // Without its rows' axis it is something else.
    let flat = base.reshaped(&[places, known(12)]).unwrap();
    assert!(!flat.is_by_place());
}
