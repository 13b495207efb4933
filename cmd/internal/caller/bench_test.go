package caller

import (
	"net"
	"os"
	"testing"
)

// BenchmarkFind finds a connection of the process that was found last, as with most of an agent's.
func BenchmarkFind(b *testing.B) {
	f, err := New()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	tuple := Tuple{Client: c.LocalAddr().(*net.TCPAddr).AddrPort(), Server: c.RemoteAddr().(*net.TCPAddr).AddrPort()}
	me := Owner{uint32(os.Getuid()), uint32(os.Getgid())}
	for b.Loop() {
		if pid, _ := f.Find(tuple, me); pid != os.Getpid() {
			b.Fatalf("found %d", pid)
		}
	}
}
