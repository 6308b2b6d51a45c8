package cluster

import (
	"bufio"
	"errors"
	"net"
	"testing"
	"time"
)

// echo answers each line with itself until its listener is closed.
func echo(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, err := bufio.NewReader(c).ReadString('\n')
			for err == nil {
				if _, err = c.Write([]byte(line)); err == nil {
					line, err = bufio.NewReader(c).ReadString('\n')
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l
}

func ask(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && got != "hello\n" {
		err = errors.New("got " + got)
	}
	return err
}

// askNew asks on a connection of its own. A reset during the dial counts as no answer.
func askNew(k *Link) error {
	c, err := net.Dial("tcp", k.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c)
}

func TestLink(t *testing.T) {
	k, err := NewLink()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := askNew(k); err == nil {
		t.Error("an answer without a target")
	}
	k.SetTarget(echo(t).Addr().String())
	c, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ask(c); err != nil {
		t.Errorf("open link: %v", err)
	}
	k.cut()
	k.cut()
	if err := ask(c); err == nil {
		t.Error("an answer on a connection that was cut")
	}
	if err := askNew(k); err == nil {
		t.Error("an answer on a new connection while the link is cut")
	}
	k.heal()
	if err := askNew(k); err != nil {
		t.Errorf("healed link: %v", err)
	}
}
