//! Tests in a virtual machine: a file here exports `TESTS` (`tests![…]`) and has one line below.

mod machine;

kilo_e2e::test_files! {
    mesh_ipip,
    mesh_kernel,
    wireguard_kernel,
}
