//! Tests that run twice: on an NVIDIA GPU, and everywhere on the stand-in that computes (`computing.rs`).

/// Makes two tests of each function, which is given what the file's `gpu` gives: the GPU, or what stands in for it, whose
/// streams do their work late, early, or once so and once so.
macro_rules! twins {
    ([$($when:ident)*] $($name:ident)*) => {
        #[cfg(target_os = "linux")]
        const WAYS: &[crate::computing::When] = &[$(crate::computing::When::$when),*];

        $(mod $name {
            #[test]
            #[cfg(target_os = "linux")]
            fn on_the_stand_in() {
                let name = concat!(stringify!($name), "::on_the_stand_in");
                crate::computing::run(name, &[], super::WAYS, || super::$name(&super::gpu()));
            }

            #[test]
            #[ignore = "needs an NVIDIA GPU"]
            fn on_a_gpu() {
                super::$name(&super::gpu());
            }
        })*
    };
}
