// SPDX-License-Identifier: MIT OR Apache-2.0

//! Serves restyled live video over RTSP; see `--help`.

mod options;
mod pipeline;

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use gst::glib;
use gst::prelude::*;
use gst_rtsp_server::prelude::*;

use options::Options;
use pipeline::Controls;

fn main() -> ExitCode {
    match serve(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("streamdiffusion-rtsp-server: {what}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), String> {
    gst::init().map_err(|error| error.to_string())?;
    let controls = Controls::new(options)?;

    let factory = gst_rtsp_server::RTSPMediaFactory::new();
    factory.set_launch(&pipeline::description(options)?);
    // The heart of it: without this, each client gets a pipeline of its own.
    factory.set_shared(true);
    let built = AtomicUsize::new(0);
    factory.connect_media_configure({
        let controls = controls.clone();
        move |_, media| {
            let number = built.fetch_add(1, Ordering::Relaxed) + 1;
            println!("pipeline {number} is built");
            let element = media.element().downcast::<gst::Bin>();
            if let Some(what) = element.ok().and_then(|bin| controls.configure(&bin).err()) {
                eprintln!("streamdiffusion-rtsp-server: {what}");
            }
            media.connect_unprepared(move |_| println!("pipeline {number} is taken down"));
        }
    });

    let server = gst_rtsp_server::RTSPServer::new();
    server.set_address(&options.address);
    server.set_service(&options.port.to_string());
    server
        .mount_points()
        .ok_or("the RTSP server has no mount points")?
        .add_factory(&options.mount.0, factory);
    let clients = Arc::new(AtomicUsize::new(0));
    server.connect_client_connected(move |_, client| {
        let now = clients.fetch_add(1, Ordering::Relaxed) + 1;
        println!("a client came ({now} now)");
        let clients = clients.clone();
        client.connect_closed(move |_| {
            let now = clients.fetch_sub(1, Ordering::Relaxed) - 1;
            println!("a client went ({now} now)");
        });
    });
    server.attach(None).map_err(|_| {
        let Options { address, port, .. } = options;
        format!("cannot listen on {address}:{port}: is something else doing so?")
    })?;
    // Clients that went without a word are forgotten when their session times out.
    let pool = server.session_pool();
    glib::timeout_add(Duration::from_secs(5), move || {
        if let Some(pool) = &pool {
            pool.cleanup();
        }
        glib::ControlFlow::Continue
    });

    let Options { address, mount, .. } = options;
    println!("rtsp://{address}:{}{}", server.bound_port(), mount.0);
    std::thread::spawn({
        let controls = controls.clone();
        move || read_prompts(&controls)
    });

    // Until Ctrl-C ends the program; nothing of it outlives it.
    glib::MainLoop::new(None, false).run();
    Ok(())
}

/// Takes each line of standard input for a new prompt.
fn read_prompts(controls: &Controls) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let prompt = line.trim();
        if !prompt.is_empty() {
            controls.set_prompt(prompt);
            println!("prompt: {prompt}");
        }
    }
}
