package benchmarks

import (
	"context"
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
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// run starts a program that ends with the test.
func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// startZooKeeper starts a server, and returns "" where ZooKeeper or Java isn't installed.
func startZooKeeper(t *testing.T, synced bool) string {
	t.Helper()
	java, err := exec.LookPath("java")
	path := classes()
	if err != nil || path == "" {
		t.Log("ZooKeeper or Java is not installed: its column stays empty")
		return ""
	}
	addr, store := freeAddr(t), t.TempDir()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(store, "zoo.cfg")
	text := "dataDir=" + store + "\nclientPortAddress=127.0.0.1\nclientPort=" + port + "\ntickTime=2000\nmaxClientCnxns=0\nadmin.enableServer=false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	force := map[bool]string{true: "yes", false: "no"}[synced]
	cmd := exec.Command(java, "-cp", path, "-Dzookeeper.forceSync="+force, "-Dzookeeper.admin.enableServer=false",
		"org.apache.zookeeper.server.ZooKeeperServerMain", conf)
	run(t, cmd)
	for deadline := time.Now().Add(time.Minute); !serves(addr); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("ZooKeeper does not come up on port " + strconv.Quote(port))
		}
	}
	return addr
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
	c, events, err := zk.Connect([]string{s.zookeeper}, ttl, zk.WithLogInfo(false), zk.WithLogger(silent{}))
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
