//! Tests that run twice: on an NVIDIA GPU, and everywhere on the stand-in that computes (`computing.rs`).

/// Makes two tests of each function, which is given what the file's `gpu` gives: the GPU, or what stands in for it.
macro_rules! twins {
    ($($name:ident)*) => {$(
        mod $name {
            #[test]
            #[cfg(target_os = "linux")]
            fn on_the_stand_in() {
                let name = concat!(stringify!($name), "::on_the_stand_in");
                crate::computing::run(name, &[], || super::$name(&super::gpu()));
            }

            #[test]
            #[ignore = "needs an NVIDIA GPU"]
            fn on_a_gpu() {
                super::$name(&super::gpu());
            }
        }
    )*};
}
