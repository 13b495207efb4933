package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"exitgate/firewall"
	"exitgate/netns"

	"golang.org/x/sys/unix"
)

const nftRow = "nft -f"

// sets is how long a change of the fence's sets takes: by its own writer, over one netlink socket, and by the program.
func (b *bench) sets() error {
	t := newTable("sets", "Sets: so many elements put in and taken out again", nftRow)
	sizes := []int{1, 1000, 10000, 60000}
	for _, n := range sizes {
		t.Columns = append(t.Columns, column{Name: fmt.Sprintf("%d", n), Unit: "ms", Format: "%.3f", Ratio: true, Brief: true})
	}
	own, program, err := newPlaces()
	if err != nil {
		return err
	}
	defer own.Close()
	defer program.Close()
	var k *firewall.Netlink
	if err := netns.Do(own, func() (err error) { k, err = firewall.OpenNetlink(); return err }); err != nil {
		return err
	}
	w := firewall.NewWriter(k)
	defer w.Close()
	if err := errors.Join(w.Install(firewall.Contents{}), nft(program, firewall.Render(firewall.Contents{}))); err != nil {
		return err
	}
	for range b.rounds {
		for _, n := range sizes {
			if err := errors.Join(b.updated(t, w, n), b.updatedByProgram(t, program, n)); err != nil {
				return err
			}
		}
	}
	b.show(t)
	return nil
}

// changeOf is n elements of the largest set.
func changeOf(n int) (c firewall.Contents) {
	for i := range n {
		c.Egress = append(c.Egress, firewall.Endpoint{Proto: unix.IPPROTO_TCP, Addr: filler(i + 1), Port: portHTTPS})
	}
	return c
}

func (b *bench) updated(t *table, w *firewall.Writer, n int) error {
	change, begin := changeOf(n), time.Now()
	if err := w.Update(change, firewall.Contents{}); err != nil {
		return err
	}
	if err := w.Update(firewall.Contents{}, change); err != nil {
		return err
	}
	t.add(gateName, fmt.Sprintf("%d", n), time.Since(begin).Seconds()*1e3)
	return nil
}

func (b *bench) updatedByProgram(t *table, h *netns.Handle, n int) error {
	begin := time.Now()
	for _, verb := range []string{"add", "delete"} {
		var text strings.Builder
		fmt.Fprintf(&text, "%s element inet %s egress4 {", verb, firewall.TableName)
		for i := range n {
			fmt.Fprintf(&text, "%s . tcp . %d,", filler(i+1), portHTTPS)
		}
		text.WriteString("}\n")
		if err := nft(h, text.String()); err != nil {
			return err
		}
	}
	t.add(nftRow, fmt.Sprintf("%d", n), time.Since(begin).Seconds()*1e3)
	return nil
}

// newPlaces are two namespaces: a table belongs to the socket that made it, so the program needs one of its own.
func newPlaces() (own, program *netns.Handle, err error) {
	if own, err = netns.New(); err != nil {
		return nil, nil, err
	}
	if program, err = netns.New(); err != nil {
		own.Close()
		return nil, nil, err
	}
	return own, program, nil
}

// nft gives text to the program.
func nft(h *netns.Handle, text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	var out []byte
	err := netns.Do(h, func() (err error) { out, err = cmd.CombinedOutput(); return err })
	if err != nil {
		return fmt.Errorf("nft: %w: %.200s", err, out)
	}
	return nil
}
