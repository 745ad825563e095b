//! Tests that run twice: on an NVIDIA GPU, and everywhere on the stand-in that computes (`computing.rs`).

/// Makes two tests of each function, which is given what the file's `gpu` gives: the GPU, or what stands in for it, whose
/// streams do their work late, early, or once so and once so.
macro_rules! twins {
    ($ways:tt $($name:ident)*) => {
        $(mod $name {
            #[test]
            #[cfg(target_os = "linux")]
            fn on_the_stand_in() {
                // As the test is called, which is without the crate.
                let path = concat!(module_path!(), "::on_the_stand_in");
                let name = path.split_once("::").map_or(path, |parts| parts.1);
                super::computing::run(name, &[], ways!($ways), || super::$name(&super::gpu()));
            }

            #[test]
            #[ignore = "needs an NVIDIA GPU"]
            fn on_a_gpu() {
                super::$name(&super::gpu());
            }
        })*
    };
}

#[cfg(target_os = "linux")]
macro_rules! ways {
    ([$($when:ident)*]) => {
        &[$(super::computing::When::$when),*]
    };
}
