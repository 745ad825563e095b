//! The command line.

use clap::Parser;

/// Serves restyled live video over RTSP: one pipeline, and one loaded model, for all clients.
///
/// Each line typed into its standard input is a new prompt, which all clients see from the next frame on.
#[derive(Parser)]
#[command(name = "streamdiffusion-rtsp-server")]
pub struct Options {
    /// What to restyle: "test", "camera", "camera:/dev/videoN" or a URI such as rtsp://host/path or file:///path
    #[arg(long, default_value = "test")]
    pub input: Input,

    /// What it should look like [default: the model's own]
    #[arg(long)]
    pub prompt: Option<String>,

    /// Sets a property of the element, as in --set steps=1; may be given several times
    #[arg(long = "set", value_name = "PROPERTY=VALUE")]
    pub properties: Vec<Property>,

    /// Serve the input as it is: a camera to try other programs with
    #[arg(long)]
    pub no_restyle: bool,

    /// Width and height of what is served
    #[arg(long, value_name = "WxH", default_value = "512x512")]
    pub size: Size,

    /// Frames per second of what is served: those of a slower input are repeated, of a faster one left out
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=240))]
    pub fps: u16,

    /// Address to listen on; 0.0.0.0 lets other machines in, without a password
    #[arg(long, default_value = "127.0.0.1")]
    pub address: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8554)]
    pub port: u16,

    /// Path of the stream
    #[arg(long, default_value = "/live")]
    pub mount: Mount,
}

/// Where the video comes from.
#[derive(Clone)]
pub enum Input {
    Test,
    Camera(String),
    Uri(String),
}

impl std::str::FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "test" => Ok(Self::Test),
            None if text == "camera" => Ok(Self::Camera("/dev/video0".into())),
            Some(("camera", device)) if !device.is_empty() => Ok(Self::Camera(device.into())),
            Some((_, rest)) if rest.starts_with("//") => Ok(Self::Uri(text.into())),
            _ => Err("expected test, camera, camera:/dev/videoN or a URI with ://".into()),
        }
    }
}

/// A property of the element and its value as text.
#[derive(Clone)]
pub struct Property {
    pub name: String,
    pub value: String,
}

impl std::str::FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected PROPERTY=VALUE")?;
        Ok(Self {
            name: name.into(),
            value: value.into(),
        })
    }
}

/// Width and height in pixels.
#[derive(Clone, Copy)]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // H.264 with 4:2:0 wants even sides.
        let side = |text: &str| text.parse().ok().filter(|n| *n >= 16 && n % 2 == 0);
        text.split_once('x')
            .and_then(|(width, height)| {
                Some(Self {
                    width: side(width)?,
                    height: side(height)?,
                })
            })
            .ok_or("expected WIDTHxHEIGHT, both even and 16 or more".into())
    }
}

/// A path on the server.
#[derive(Clone)]
pub struct Mount(pub String);

impl std::str::FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
        if text.len() > 1 && text.starts_with('/') && text.chars().all(plain) {
            Ok(Self(text.into()))
        } else {
            Err("expected a path such as /live, of letters, digits and /-_.".into())
        }
    }
}
