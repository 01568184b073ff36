//! A guest of libvirt's moves from one host to another, as KubeVirt has it: a session daemon on each, which start QEMU and
//! translators, and passt-repair beside them, which virt-handler starts.

use std::thread;

use super::lab::{
    Host, LONG, Nodes, PATIENCE, Repair,
    numbers::Peer,
    session::{HERE, Session},
    wait_until,
};

/// Connections of the guest's: uploads, downloads and idle ones over IPv4 and IPv6, and one from outside.
const ALL: &str = "7 of 7 TCP connections";

fn domain() -> String {
    format!(
        "<domain type='qemu'>
           <name>guest</name>
           <memory unit='MiB'>192</memory>
           <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
           <os>
             <type arch='x86_64' machine='pc'>hvm</type>
             <kernel>{HERE}/kernel</kernel>
             <initrd>{HERE}/initramfs</initrd>
             <cmdline>console=ttyS0 quiet panic=-1 no_timer_check peer4=192.0.2.1 peer6=2001:db8:7::1</cmdline>
           </os>
           <cpu mode='maximum' migratable='on'/>
           <devices>
             <serial type='file'><source path='{HERE}/console'/></serial>
             <memballoon model='none'/>
             <interface type='vhostuser'>
               <source dev='eth0'/>
               <mac address='52:54:00:12:34:56'/>
               <model type='virtio'/>
               <backend type='passt' logFile='{HERE}/passt.log'/>
               <portForward proto='tcp'><range start='8080'/></portForward>
             </interface>
           </devices>
         </domain>"
    )
}

#[test]
#[ignore = "takes longer than ten seconds"]
fn connections_survive_a_move_by_libvirt() {
    let Some(nodes) = Nodes::routed() else { return };
    // The router is another than the peer: its address leads to the host itself, as libvirt starts us.
    nodes.peer.ip("addr add 192.0.2.254/24 dev br0
         addr add 2001:db8:7::fe/64 dev br0 nodad");
    let start = |host: &Host| {
        host.ip("route replace default via 192.0.2.254 dev eth0
             route replace default via 2001:db8:7::fe dev eth0");
        let session = Session::start(host, "tests/migration/guest-init")?;
        host.allow_low_ports();
        Some(session)
    };
    let Some(source) = start(&nodes.source) else {
        return;
    };
    let target = start(&nodes.target).expect("as on the source");
    let mut peer = Peer::start(&nodes.peer);
    source.order(&["create", &source.write(&domain())]);
    source.expect_console("READY");
    peer.expect_guest();
    peer.connect_to_guest();
    let before = peer.progress();
    assert!(wait_until(PATIENCE, || peer.progress().all_beyond(&before)));

    let socket = source.passt_folder().join("1-guest-net0.socket.repair");
    let of_source = Repair::connected(&nodes.source, &socket, Repair::ours());
    // The target's translator is not there yet.
    let of_target = Repair::start(&nodes.target, &target.passt_folder(), Repair::ours());
    let way = format!("unix://{}/migration", target.dir().display());
    let uri = target.uri();
    thread::scope(|scope| {
        let arrived = scope.spawn(|| {
            target.expect_log(&format!("Guest arrived with {ALL}"));
            nodes.switch("p1", "p2");
        });
        source.order(&[
            "migrate",
            "--live",
            "--p2p",
            "guest",
            &uri,
            "--migrateuri",
            &way,
        ]);
        arrived.join().expect("the network follows");
    });
    assert_eq!(of_source.end(), Some(0));
    assert_eq!(of_target.end(), Some(0));
    // Nothing is left of the guest where it was.
    assert!(wait_until(LONG, || source.translators().is_empty()));
    let (_, argv) = target.translator();
    assert!(
        argv.join(" ")
            .starts_with("passt --vhost-user --one-off --socket")
    );

    let before = peer.progress();
    assert!(
        wait_until(PATIENCE, || peer.progress().all_beyond(&before)),
        "{}",
        target.log()
    );
    peer.ask_idle_connections();
    for (addr, sum) in peer.finish() {
        target.expect_console(&format!("SUM {addr} {sum}"));
    }
    target.order(&["destroy", "guest"]);
    assert!(wait_until(LONG, || target.translators().is_empty()));
}
