package benchmarks

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
)

// classes is the class path of ZooKeeper as Debian's package has it, or that in ZOOKEEPER_CLASSPATH, "" if there is none.
func classes() string {
	if path := os.Getenv("ZOOKEEPER_CLASSPATH"); path != "" {
		return path
	}
	if _, err := os.Stat("/usr/share/java/zookeeper.jar"); err != nil {
		return ""
	}
	return "/usr/share/java/*"
}

// freeAddr is an address of this machine that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// run starts a program that ends with the test.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// startZooKeeper starts servers, and returns none where ZooKeeper or Java isn't installed.
func startZooKeeper(t testing.TB, nodes int, synced bool) (clients []string) {
	t.Helper()
	java, err := exec.LookPath("java")
	path := classes()
	if err != nil || path == "" {
		t.Log("ZooKeeper or Java is not installed: its column stays empty")
		return nil
	}
	clients = addrs(t, nodes)
	common := "clientPortAddress=127.0.0.1\ntickTime=2000\nmaxClientCnxns=0\nadmin.enableServer=false\n"
	if nodes > 1 {
		common += "initLimit=20\nsyncLimit=10\n"
		quorum, votes := addrs(t, nodes), addrs(t, nodes)
		for i := range nodes {
			_, port, _ := net.SplitHostPort(votes[i])
			common += fmt.Sprintf("server.%d=%s:%s\n", i+1, quorum[i], port)
		}
	}
	force := map[bool]string{true: "yes", false: "no"}[synced]
	for i, addr := range clients {
		store := t.TempDir()
		_, port, _ := net.SplitHostPort(addr)
		conf := filepath.Join(store, "zoo.cfg")
		for file, text := range map[string]string{conf: common + "dataDir=" + store + "\nclientPort=" + port + "\n", filepath.Join(store, "myid"): strconv.Itoa(i+1) + "\n"} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		run(t, exec.Command(java, "-cp", path, "-Dzookeeper.forceSync="+force, "-Dzookeeper.admin.enableServer=false",
			"org.apache.zookeeper.server.quorum.QuorumPeerMain", conf))
	}
	for _, addr := range clients {
		for deadline := time.Now().Add(time.Minute); !serves(addr); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("ZooKeeper does not come up at %s", addr)
			}
		}
	}
	return clients
}

// serves reports whether ZooKeeper takes sessions at addr. It listens before it does, and never answers who asks then.
func serves(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte("srvr"))
	text, _ := io.ReadAll(c)
	return strings.Contains(string(text), "Mode:")
}

// zookeeperMutex is the client library's recipe: a sequential node for each who waits.
func zookeeperMutex(t testing.TB, s *servers, key string, _ int) round {
	t.Helper()
	c, events, err := zk.Connect(s.zookeeper, ttl, zk.WithLogInfo(false), zk.WithLogger(silent{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for e := range events { // hundreds that connect at once overflow the server's backlog, and fail
		if e.State == zk.StateHasSession {
			break
		}
	}
	l := zk.NewLock(c, "/"+key, zk.WorldACL(zk.PermAll))
	return func(context.Context, int) error {
		if err := l.Lock(); err != nil {
			return err
		}
		return l.Unlock()
	}
}

type silent struct{}

func (silent) Printf(string, ...any) {}
