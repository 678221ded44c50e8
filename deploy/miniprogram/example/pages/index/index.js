const { scanId } = require("../../wxgate-client.js");

Page({
  // A Mini Program code opens this page, the first one, with a scene.
  onLoad(query) {
    const id = scanId(query);
    if (id) wx.navigateTo({ url: `/pages/scan/scan?scene=${id}` });
  },

  // For a code on another screen, while the app is open.
  scan() {
    wx.scanCode({
      success: ({ path, result }) => {
        const code = encodeURIComponent(path || result);
        wx.navigateTo({ url: `/pages/scan/scan?q=${code}` });
      },
    });
  },
});
