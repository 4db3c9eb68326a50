//! AMD GPUs under Linux: what the kernel says of them, and which of llama.cpp's devices they are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::server::{Device, Server};

/// A GPU that the kernel's compute driver (`amdgpu`, KFD) has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Its instruction set: `gfx1101`.
    pub(crate) target: String,
    /// Bytes of its own memory; a GPU that is part of the processor may have none.
    pub(crate) memory: u64,
}

/// The GPUs of this machine, or why there are none that compute.
pub(crate) fn gpus() -> Result<Vec<Gpu>, String> {
    if !cfg!(target_os = "linux") {
        return Err("ROCm needs Linux".to_owned());
    }
    gpus_under(Path::new("/"))
}

/// The same of the file system under `root`.
///
/// The device file `dev/kfd` is the driver's; `sys/class/kfd/kfd/topology/nodes/N/properties` has lines of a name and a number. A
/// node with `simd_count` above 0 is a GPU, and its `gfx_target_version` is major · 10000 + minor · 100 + stepping. A bank of memory of
/// `heap_type` 1 or 2 is the GPU's own.
fn gpus_under(root: &Path) -> Result<Vec<Gpu>, String> {
    if !root.join("dev/kfd").exists() {
        return Err("there is no /dev/kfd: no AMD GPU, or no amdgpu driver".to_owned());
    }
    let nodes = root.join("sys/class/kfd/kfd/topology/nodes");
    let mut gpus = Vec::new();
    for node in folders(&nodes) {
        let properties = fs::read_to_string(node.join("properties")).unwrap_or_default();
        let number = |name| property(&properties, name);
        let version = number("gfx_target_version").unwrap_or(0);
        if number("simd_count").unwrap_or(0) == 0 || version == 0 {
            continue;
        }
        let banks = folders(&node.join("mem_banks"));
        let banks = banks.iter().filter_map(|bank| fs::read_to_string(bank.join("properties")).ok());
        let own = banks.filter(|bank| matches!(property(bank, "heap_type"), Some(1 | 2)));
        let memory = own.filter_map(|bank| property(&bank, "size_in_bytes")).fold(0, u64::saturating_add);
        let (major, minor, stepping) = (version / 10_000, version / 100 % 100, version % 100);
        gpus.push(Gpu { target: format!("gfx{major}{minor:x}{stepping:x}"), memory });
    }
    if gpus.is_empty() {
        return Err("/dev/kfd is there, but the driver has no GPU that computes".to_owned());
    }
    Ok(gpus)
}

/// The folders in this one, in order of their names.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn property(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Those of a server's devices that are AMD GPUs and worth using: a GPU that is part of the processor has a fraction of the memory of
/// one that is not, and llama.cpp would split the model over both.
pub(crate) fn devices(server: &Server) -> Result<Vec<&Device>, String> {
    let found: Vec<_> = server.devices.iter().filter(|device| device.name.starts_with("ROCm")).collect();
    let Some(most) = found.iter().map(|device| device.memory).max() else {
        let names: Vec<_> = server.devices.iter().map(|device| device.name.as_str()).collect();
        return Err(format!(
            "{} has no ROCm device (it has [{}]): use a llama-server that is built with GGML_HIP",
            server.path.display(),
            names.join(", ")
        ));
    };
    Ok(found.into_iter().filter(|device| device.memory >= most / 2).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as the kernel has them on a machine with a Radeon RX 7800 XT and a GPU in its processor.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let nodes = "sys/class/kfd/kfd/topology/nodes";
        write("dev/kfd", "");
        write(&format!("{nodes}/0/properties"), "cpu_cores_count 16\nsimd_count 0\ngfx_target_version 0\n");
        write(&format!("{nodes}/0/mem_banks/0/properties"), "heap_type 0\nsize_in_bytes 33554432000\n");
        write(
            &format!("{nodes}/1/properties"),
            "cpu_cores_count 0\nsimd_count 120\nmem_banks_count 1\ngfx_target_version 110001\nvendor_id 4098\n",
        );
        write(
            &format!("{nodes}/1/mem_banks/0/properties"),
            "heap_type 1\nsize_in_bytes 17163091968\nflags 0\n",
        );
        write(&format!("{nodes}/2/properties"), "simd_count 4\ngfx_target_version 100306\n");
        root
    }

    #[test]
    fn gpus_are_what_the_driver_has() {
        let root = machine();
        let gpus = gpus_under(root.path()).unwrap();
        let expected = [("gfx1101", 17_163_091_968), ("gfx1036", 0)];
        assert_eq!(gpus, expected.map(|(target, memory)| Gpu { target: target.to_owned(), memory }));
        fs::remove_dir_all(root.path().join("sys/class/kfd/kfd/topology/nodes")).unwrap();
        assert!(gpus_under(root.path()).unwrap_err().contains("no GPU that computes"));
        fs::remove_file(root.path().join("dev/kfd")).unwrap();
        assert!(gpus_under(root.path()).unwrap_err().contains("no /dev/kfd"));
    }

    #[test]
    fn a_gpu_that_is_part_of_the_processor_is_left_out() {
        let device = |name: &str, mebibytes: u64| Device {
            name: name.to_owned(),
            description: "AMD Radeon".to_owned(),
            memory: mebibytes << 20,
            free: 0,
        };
        let named = |devices: Vec<Device>| {
            let server = Server::with_devices(devices);
            super::devices(&server)
                .map(|found| found.iter().map(|device| device.name.clone()).collect::<Vec<_>>())
        };
        let found = named(vec![
            device("Vulkan0", 16368),
            device("ROCm0", 16368),
            device("ROCm1", 512),
            device("ROCm2", 16368),
        ]);
        assert_eq!(found.unwrap(), ["ROCm0", "ROCm2"]);
        assert!(named(vec![device("Vulkan0", 16368)]).unwrap_err().contains("it has [Vulkan0]"));
    }
}
