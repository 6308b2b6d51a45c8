package faultproxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// injectTimeout bounds the late delivery of a message to a server on loopback.
const injectTimeout = 10 * time.Second

// conn is one client with its own connection to the server. Four goroutines
// serve it, a reader and a writer for each direction, and run waits for them.
type conn struct {
	proxy  *Proxy
	client net.Conn
	server net.Conn
	up     *lane // to the server
	down   *lane // to the client
	cancel context.CancelFunc

	mu      sync.Mutex
	connect []byte // the client's CONNECT, for inject
}

func newConn(p *Proxy, client, server net.Conn, cancel context.CancelFunc) *conn {
	return &conn{proxy: p, client: client, server: server, up: newLane(p, server), down: newLane(p, client), cancel: cancel}
}

// abort ends the connection at once. Bytes under way are lost.
func (c *conn) abort() {
	c.cancel()
	reset(c.client)
	reset(c.server)
}

func reset(nc net.Conn) {
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = nc.Close()
}

// run returns when both directions have ended. If a side closes in order, everything that it
// sent before is delivered first.
func (c *conn) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		c.readClient()
		c.up.end()
	})
	wg.Go(func() {
		c.readServer()
		c.down.end()
	})
	wg.Go(func() {
		c.up.write(ctx)
		_ = c.server.Close() // ends readServer, and so the other direction
	})
	wg.Go(func() {
		c.down.write(ctx)
		_ = c.client.Close()
	})
	wg.Wait()
}

func (c *conn) readClient() {
	r := bufio.NewReader(c.client)
	for {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		n := 1
		switch {
		case f.isMessage():
			n = c.proxy.rules.request(c, f)
		case f.op == "CONNECT":
			c.mu.Lock()
			c.connect = f.raw
			c.mu.Unlock()
		}
		for range n {
			c.up.push(f)
		}
	}
}

func (c *conn) readServer() {
	r := bufio.NewReader(c.server)
	for {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		n := 1
		if f.isMessage() {
			n = c.proxy.rules.reply(f)
		}
		for range n {
			c.down.push(f)
		}
	}
}

// inject delivers a frame on a new connection to the server, with the CONNECT of
// this one, and waits until the server has processed it.
func (c *conn) inject(f *frame) error {
	server, err := net.DialTimeout("tcp", c.proxy.target, injectTimeout)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := server.SetDeadline(time.Now().Add(injectTimeout)); err != nil {
		return err
	}
	c.mu.Lock()
	out := append([]byte(nil), c.connect...)
	c.mu.Unlock()
	out = append(append(out, f.raw...), "PING\r\n"...)
	if _, err := server.Write(out); err != nil {
		return err
	}
	r := bufio.NewReader(server)
	for {
		got, err := readFrame(r)
		switch {
		case err != nil:
			return err
		case got.op == "PONG":
			return nil
		case got.op == "-ERR":
			return fmt.Errorf("server says %q", got.raw)
		}
	}
}
