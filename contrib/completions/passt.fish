complete -c passt -s s -l socket -l socket-path -d 'Listen on this UNIX domain socket (default: first free of /tmp/passt_1.socket to _64)' -r
complete -c passt -s F -l fd -d 'Use this inherited, connected socket; implies --one-off' -r
complete -c passt -l vhost-features -d 'Offer these virtio features only, or all but those behind a ~ (default: all)' -r
complete -c passt -l queues -d 'Serve up to this many queue pairs, 1 to 16, each by a thread (default: the processors, up to 4)' -r
complete -c passt -l busy-poll -d 'Look for more for so many microseconds before sleeping, up to 1000000 (default: 0)' -r
complete -c passt -l repair-path -d 'Where passt-repair connects; \'none\' for nowhere (default: the socket\'s path with .repair)' -r
complete -c passt -l stats -d 'Show counters of events, at most every so many seconds' -r
complete -c passt -s l -l log-file -d 'Log to this file and not to the system log' -r
complete -c passt -l log-size -d 'Largest size of the log file (default: 1048576)' -r
complete -c passt -s P -l pid -d 'Write the process ID to this file' -r
complete -c passt -s p -l pcap -d 'Capture the guest\'s traffic to this file' -r
complete -c passt -l runas -d 'Run as this user and group, by number or name (default when root: nobody)' -r
complete -c passt -s c -l conf-path -d 'Let pesto change forwards at run time, at this socket' -r
complete -c passt -s m -l mtu -d 'MTU told to the guest, 0 for none (default: 65520)' -r
complete -c passt -s a -l address -d 'Address of the guest, once per family (default: the host\'s)' -r
complete -c passt -s n -l netmask -d 'IPv4 netmask, dotted or in bits (default: the host\'s)' -r
complete -c passt -s M -l mac-addr -d 'Our MAC address (default: 9a:55:9a:55:9a:55)' -r
complete -c passt -s g -l gateway -d 'Router told to the guest, once per family (default: the host\'s)' -r
complete -c passt -s i -l interface -d 'Take addresses and routes from this interface (default: the one of the default route)' -r
complete -c passt -s o -l outbound -d 'Bind outbound sockets to this address, once per family' -r
complete -c passt -l outbound-if4 -d 'Bind outbound IPv4 sockets to this interface' -r
complete -c passt -l outbound-if6 -d 'Bind outbound IPv6 sockets to this interface' -r
complete -c passt -s t -l tcp-ports -d 'Forward these TCP ports of the host to the guest, repeatable: none, all or a list (default: none)' -r
complete -c passt -s u -l udp-ports -d 'Forward these UDP ports of the host to the guest, like --tcp-ports' -r
complete -c passt -s D -l dns -d 'Nameserver told to the guest, repeatable; \'none\' for none (default: the host\'s)' -r
complete -c passt -s S -l search -d 'Search domains told to the guest, separated by blanks; \'none\' for none (default: the host\'s)' -r
complete -c passt -s H -l hostname -d 'Host name told to the guest' -r
complete -c passt -l fqdn -d 'Fully qualified domain name told to the guest' -r
complete -c passt -l dns-forward -d 'Forward the guest\'s queries to this address to the nameserver of --dns-host' -r
complete -c passt -l dns-host -d 'Nameserver for forwarded queries (default: the host\'s first)' -r
complete -c passt -l multicast-ports -d 'Ports heard of the guest\'s multicast groups, separated by commas, or \'none\' (default: 5353,1900,5355,3702)' -r
complete -c passt -l map-host-loopback -d 'Address that stands for the host\'s loopback; \'none\' for none (default: the router\'s)' -r
complete -c passt -l map-guest-addr -d 'Address that stands for the host at the guest\'s own address; \'none\' for none (default: none)' -r
complete -c passt -s I -l ns-ifname -d '' -r
complete -c passt -s T -l tcp-ns -d '' -r
complete -c passt -s U -l udp-ns -d '' -r
complete -c passt -l userns -d '' -r
complete -c passt -l netns -d '' -r
complete -c passt -l ns-mac-addr -d '' -r
complete -c passt -l vhost-user -d 'Be a vhost-user back end at the socket'
complete -c passt -l migrate-exit -d 'Quit once the guest has migrated elsewhere (deprecated)'
complete -c passt -l migrate-no-linger -d 'Close TCP sockets once the guest has migrated elsewhere (deprecated)'
complete -c passt -s 1 -l one-off -d 'Quit when the first client leaves'
complete -c passt -s f -l foreground -d 'Stay in the foreground'
complete -c passt -s d -l debug -d 'Say what happens, on standard error and not in the system log'
complete -c passt -l trace -d 'Say even more; implies --debug'
complete -c passt -s q -l quiet -d 'Say nothing but warnings and errors'
complete -c passt -l chroot-fallback -d 'Has no effect (always done where needed)'
complete -c passt -l require-sandbox -d 'Do not start unless sandboxed in full'
complete -c passt -l print-sandbox -d 'Show how the process would be sandboxed and quit'
complete -c passt -s e -l stderr -d 'Has no effect (deprecated)'
complete -c passt -l freebind -d 'Forward ports of addresses the host may get later, too'
complete -c passt -l no-tcp -d 'Do not carry TCP'
complete -c passt -l no-udp -d 'Do not carry UDP'
complete -c passt -l no-icmp -d 'Do not carry ICMP and ICMPv6; implies --no-ndp'
complete -c passt -l no-multicast -d 'Carry no multicast and broadcast'
complete -c passt -l no-dhcp -d 'No DHCP server'
complete -c passt -l no-ndp -d 'No neighbour discovery'
complete -c passt -l no-dhcpv6 -d 'No DHCPv6 server'
complete -c passt -l no-ra -d 'No router advertisements'
complete -c passt -l no-dhcp-dns -d 'Tell the guest no nameservers'
complete -c passt -l no-dhcp-search -d 'Tell the guest no search domains'
complete -c passt -l no-map-gw -d 'Do not let the router\'s address stand for the host'
complete -c passt -l strict-source -d 'Serve the guest at no addresses but those it was given'
complete -c passt -s 4 -l ipv4-only -d 'IPv4 only'
complete -c passt -s 6 -l ipv6-only -d 'IPv6 only'
complete -c passt -l print-capabilities -d 'Show the capabilities of a vhost-user back end in JSON and quit'
complete -c passt -l version -d 'Show the version and quit'
complete -c passt -s h -l help -d 'Show this help and quit'
complete -c passt -l host-lo-to-ns-lo -d ''
complete -c passt -l netns-only -d ''
complete -c passt -l no-netns-quit -d ''
complete -c passt -l no-pidns -d ''
complete -c passt -l config-net -d ''
complete -c passt -l no-copy-routes -d ''
complete -c passt -l no-copy-addrs -d ''
complete -c passt -l no-splice -d ''
complete -c passt -l splice-only -d ''
complete -c passt -l dhcp-dns -d ''
complete -c passt -l dhcp-search -d ''
