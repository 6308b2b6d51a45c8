package chaos_test
import ("testing";"time";"context";"fmt";"github.com/lockfabric/lockfabric/internal/chaos";"github.com/lockfabric/lockfabric/kv";"github.com/lockfabric/lockfabric/embedded";"github.com/nats-io/nats.go";"encoding/json")
func TestZRestart(t *testing.T) {
	c := startCluster(t)
	managers := newManagers(t, 8, func(int) string { return c.URL() }, connOptions())
	s := begin(t, &chaos.Workload{Managers: managers, Workers: 64, Keys: 32, Patience: 25*time.Second, Tolerance: chaos.Tolerance{Unconfirmed: true}})
	s.work(time.Second)
	i := leader(t, c, locksStream)
	fmt.Println("kill", i)
	if err := c.KillNode(testContext(t), i); err != nil { t.Fatal(err) }
	fmt.Println("new leader", leader(t, c, locksStream))
	s.work(3*time.Second)
	if err := c.RestartNode(testContext(t), i); err != nil { t.Fatal(err) }
	if err := c.WaitReady(testContext(t)); err != nil { t.Fatal(err) }
	s.work(2*time.Second)
	r := s.end()
	fmt.Println(r, r.Err())
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	err := s.w.AwaitFree(ctx, s.w.Managers[0])
	fmt.Println(err)
	if err != nil { dump(t, c, s, managers[0]) }
}
func dump(t *testing.T, c *embedded.Cluster, s *scenario, m interface{}) {
	for i := range c.Size() {
		nc, err := c.Node(i).Connect()
		if err != nil { fmt.Println(err); continue }
		b, err := kv.Open(context.Background(), nc, kv.Config{Fabric: "lockfabric"})
		if err != nil { fmt.Println(err); nc.Close(); continue }
		for _, n := range s.w.Names() {
			enc, _ := kv.EncodeName(n)
			e, err := b.Locks.Get(context.Background(), enc)
			if err != nil || len(e.Value) == 0 { continue }
			fmt.Println("node", i, n, e.Revision, e.Deleted, string(e.Value))
			for range 3 {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			rev, err := b.Locks.Update(ctx, enc, e.Value, e.Revision, 0)
			cancel()
			fmt.Println("   CAS", rev, err)
			if err == nil { e.Revision = rev }
			}
		}
		r, _ := nc.Request("$JS.API.STREAM.INFO.KV_lockfabric-locks", nil, time.Second)
		var x map[string]any
		if r != nil { json.Unmarshal(r.Data, &x); fmt.Println(x["state"], x["cluster"]) }
		nc.Close()
	}
	_ = nats.Connect
}
