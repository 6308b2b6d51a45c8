// Package ui is the browser page of lockfabric: what is in use in one fabric, who
// holds it and who waits, live, and a way to take a lock away by force.
//
// [New] makes an [http.Handler] over a [Locks], which is a *fabric.Manager. The page is plain HTML, CSS and
// JavaScript that is embedded in the program. It asks nobody else for anything.
//
// # How it stays live
//
// Each open page has one stream of server-sent events (GET api/events), and behind it one loop over Manager.WatchAll,
// so one watcher of the whole bucket. A stream begins with all that is in use and goes on with what has changed, at
// most every 100 ms and with the newest state of each name. So a slow page gets less and not later. No page open,
// nothing is read. Who stands behind a lease is read once and looked up again every few seconds. The details of one
// name come from a leader read (GET api/key).
//
// # Who may see it
//
// Everything below api/ asks for a session: a cookie (HttpOnly, SameSite=Strict) that is
// given for the token (POST api/login), which is compared in constant time. So it is
// on loopback, too: other users of the host reach that as well.
//
//   - A request whose Host is neither an address, nor localhost, nor a name that was
//     allowed is refused (421): a foreign name that resolves to this address (DNS
//     rebinding) gets nothing.
//   - A request that a browser makes for another origin's page is refused (403), by
//     Sec-Fetch-Site and by Origin.
//   - The content security policy allows this origin's scripts and styles only, nothing
//     inline, no frames, and with trusted types no HTML made from text. Names, owners and
//     metadata are texts that anybody chose: the page sets them as text and shows
//     characters that are invisible or change the direction by their numbers.
//   - Force (POST api/release) is refused (403) unless it was allowed. It names the ids
//     of the holders that the page showed, so that whoever was granted meanwhile
//     keeps its hold.
//
// Cookies know no ports. A program of somebody else that a user visits on another port
// of the same host name gets the cookie.
package ui
