// The stars of ratings v2, for mongosh or the start-up folder of MongoDB's image.
db = db.getSiblingDB("test");
if (db.ratings.countDocuments() === 0) {
  db.ratings.insertMany([{ rating: 5 }, { rating: 4 }]);
}
