# A name server for the demo's world: knows one name. Usage: dns.pl LISTEN NAME IPV4 IPV6
use strict;
use warnings;
use IO::Socket::IP;
use Socket qw(AF_INET AF_INET6 inet_pton);

my ($listen, $name, $ipv4, $ipv6) = @ARGV;
my %record = (1 => inet_pton(AF_INET, $ipv4), 28 => inet_pton(AF_INET6, $ipv6));
my $socket = IO::Socket::IP->new(LocalHost => $listen, LocalPort => 53, Proto => 'udp')
    or die "$listen port 53: $@\n";

while (defined $socket->recv(my $query, 4096)) {
    next if length $query < 17;
    my ($asked, $at) = ('', 12);
    while ((my $length = ord substr $query, $at, 1) > 0 && $at < length $query) {
        $asked .= '.' . substr $query, $at + 1, $length;
        $at += $length + 1;
    }
    my $question = substr $query, 12, $at + 5 - 12;
    my $type = unpack 'n', substr $query, $at + 1, 2;

    my $known = lc $asked eq ".$name";
    my $data = $known ? $record{$type} : undef;
    my $answer = defined $data ? pack('n n n N n/a*', 0xc00c, $type, 1, 60, $data) : '';
    my $code = $known ? 0x8580 : 0x8583;
    $socket->send(substr($query, 0, 2) . pack('n5', $code, 1, $answer ne '' ? 1 : 0, 0, 0) . $question . $answer);
}
