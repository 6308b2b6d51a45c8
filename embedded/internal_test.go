package embedded

import (
	"bufio"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const internalTimeout = time.Minute

func internalContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), internalTimeout)
	t.Cleanup(cancel)
	return ctx
}

// What the default promises can't be seen without cutting the power, so look at
// what the server was told.
func TestSyncReachesTheServer(t *testing.T) {
	tests := map[string]struct {
		opts   []Option
		always bool
		every  time.Duration
	}{
		"default":  {nil, true, 0},
		"always":   {[]Option{WithSync(SyncAlways)}, true, 0},
		"interval": {[]Option{WithSync(SyncInterval(3 * time.Second))}, false, 3 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Start(internalContext(t), append(tt.opts, WithTempStore())...)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Kill()
			got := s.srv.JetStreamConfig()
			if got.SyncAlways != tt.always || (!tt.always && got.SyncInterval != tt.every) {
				t.Errorf("server syncs always: %v, every %v", got.SyncAlways, got.SyncInterval)
			}
		})
	}
	c, err := newClusterConfig(0, nil)
	if err != nil || c.sync != clusterSyncDefault || c.nodes != defaultNodes {
		t.Errorf("cluster default: %+v, %v", c, err)
	}
}

// WithCluster as a daemon uses it, with links standing in for addresses that are
// known beforehand.
func TestClusterByHand(t *testing.T) {
	links, err := newLinks(2)
	if err != nil {
		t.Fatal(err)
	}
	defer closeLinks(links)
	all := []string{links[0][0].addr(), "nats-route://" + links[0][1].addr()}
	var servers []*Server
	for i, name := range []string{"a", "b"} {
		s, err := Start(internalContext(t), WithTempStore(), WithListen("127.0.0.1:0"),
			WithServerName(name), WithCluster("hand", "127.0.0.1:0", all...))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Kill()
		links[0][i].setTarget(s.ClusterAddr().String())
		servers = append(servers, s)
	}
	nc, err := servers[0].Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	err = wait(internalContext(t), "no replicated bucket", func() bool {
		// As long as there is no leader, nobody answers.
		attempt, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.CreateOrUpdateKeyValue(attempt, jetstream.KeyValueConfig{Bucket: "b", Replicas: 2})
		return err == nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

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
	if err := c.SetDeadline(time.Now().Add(internalTimeout)); err != nil {
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

// askNew asks on a connection of its own; a reset while dialling is a no, too.
func askNew(k *link) error {
	c, err := net.Dial("tcp", k.addr())
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c)
}

func TestLink(t *testing.T) {
	k, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	if err := askNew(k); err == nil {
		t.Error("an answer without a target")
	}
	k.setTarget(echo(t).Addr().String())
	c, err := net.Dial("tcp", k.addr())
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
