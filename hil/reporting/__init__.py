"""Events in; Allure results, an HTML page, JUnit XML and summaries out."""
