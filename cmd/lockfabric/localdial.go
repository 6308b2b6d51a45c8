package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	greetingTime = 2 * time.Second
	greetingSize = 32 << 10
)

// localDialer reaches the local server and no other one. Its port may be
// somebody else's after a crash, perhaps another NATS server's that lets everybody
// in: to lock there would exclude nobody. A server says its name first, before it
// is told the token. (The name is no secret: this is against accidents.)
type localDialer struct{ name string }

// Dial implements nats.CustomDialer.
func (d localDialer) Dial(network, address string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, greetingTime)
	if err != nil {
		return nil, err
	}
	g, err := d.greet(conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is not the local server: %w", address, err)
	}
	return g, nil
}

func (d localDialer) greet(conn net.Conn) (*greeted, error) {
	if err := conn.SetReadDeadline(time.Now().Add(greetingTime)); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(conn, greetingSize)
	line, err := r.ReadSlice('\n') // a longer one is no greeting
	if err != nil {
		return nil, err
	}
	line = bytes.Clone(line)
	var info struct {
		Name string `json:"server_name"`
	}
	said, ok := bytes.CutPrefix(line, []byte("INFO "))
	if !ok || json.Unmarshal(said, &info) != nil || info.Name != d.name {
		return nil, fmt.Errorf("it calls itself %q", info.Name)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return &greeted{conn, io.MultiReader(bytes.NewReader(line), r)}, nil
}

// greeted is a connection whose first line was read already, and is read again.
type greeted struct {
	net.Conn
	r io.Reader
}

func (g *greeted) Read(p []byte) (int, error) { return g.r.Read(p) }
